"""What users say of class sizes (`TRAINER.INMAP.MARGINAL`), and what they are told of the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, listed
from dassl_clip.results.files import no_file
from dassl_clip.results.labels import display_name

from .marginal import Choice

AUTO, UNIFORM, ZEROSHOT = "auto", "uniform", "zero-shot"


def read_sizes(path: Path, classnames: Sequence[str], images: int) -> Tensor:
    """Known class sizes from a file, as shares `[C]` that sum to 1.

    Args:
        path: Lines `name: size`, yaml or json; sizes are counts of the images, or shares.
        classnames: The `C` names that it has to name, each once.
        images: Number of unlabelled images, which counts sum to.

    Raises:
        UserError: The file is missing or no such list, lacks a class, names another one, or its sizes sum to neither.
    """
    if not path.is_file():
        raise UserError(
            f"TRAINER.INMAP.MARGINAL: {no_file(path)}; it is {AUTO}, {UNIFORM}, {ZEROSHOT}, a number of at most 1, or "
            "a file of lines 'class name: size'"
        )
    try:
        sizes = read_yaml(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(sizes, dict) or not all(_is_size(size) for size in sizes.values()):
        texts = [size for size in sizes.values() if isinstance(size, str)] if isinstance(sizes, dict) else []
        hint = f"; yaml reads {texts[0]} as a text: write it as 0.001 or 1.0e-3" if texts else ""
        raise UserError(f"{path} should hold a line 'class name: size' for each class, sizes 0 or more{hint}")
    named = {display_name(str(name)): float(size) for name, size in sizes.items()}
    wanted = [display_name(name) for name in classnames]
    missing, odd = [name for name in wanted if name not in named], [name for name in named if name not in wanted]
    if missing or odd or len(named) < len(sizes):
        why = f"lacks {listed(missing)}" if missing else f"names {listed(odd)}, no class of the data set"
        why = why if missing or odd else "names a class twice"
        changed = [str(name) for name in sizes if not isinstance(name, str)]
        hint = f"; yaml reads a name without quotes as {listed(changed)}: put names in quotes" if changed else ""
        raise UserError(f"{path} {why}; the {len(wanted)} classes are {listed(wanted)}{hint}")
    total = sum(named.values())
    if not (math.isclose(total, 1, abs_tol=1e-3) or math.isclose(total, images, rel_tol=1e-9)):
        raise UserError(
            f"the sizes in {path} sum to {total:g}; counts sum to the number of unlabelled images, {images}, and "
            "shares to 1"
        )
    return torch.tensor([named[name] / total for name in wanted], dtype=torch.float64)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def parse_marginal(value: object, key: str) -> str | float | Path:
    """`auto`, `uniform`, a number `r` (0 for `zero-shot`), or the path of a file of known sizes.

    Raises:
        UserError: A number above 1, an infinite one, or no number.
    """
    text = str(value).strip()
    if text.lower() in (AUTO, UNIFORM):
        return text.lower()
    if text.lower() == ZEROSHOT:
        return 0.0
    try:
        r = float(text)
    except ValueError:
        return Path(text).expanduser()
    if r == -math.inf:
        raise UserError(f"{key} is {value!r}; sizes that are evened out without limit are equal: take {UNIFORM}")
    if not r <= 1:
        raise UserError(
            f"{key} is {value!r}; as a number it is at most 1 (1: predicted sizes are true, 0: as they are, below 0: "
            "evened out)"
        )
    return r


def facts_of(choice: Choice) -> dict[str, Any]:
    """What a record says of a choice."""
    names = {"r": choice.r, "share": choice.share, "spread": choice.spread, "confidence_cost": choice.cost}
    names |= {"text_bias": choice.bias}
    return {name: None if value.isnan() else float(value) for name, value in names.items()}


def sentence(choice: Choice, asked: str | float | Path) -> str:
    """What was chosen, for the log: "class sizes look uneven: r = 0.71 ..."."""
    facts = facts_of(choice)
    detail = f"Z = {facts['spread']:.2f}, share of the proxies {facts['share']:.2f}"
    if isinstance(asked, Path):
        return f"class sizes are those of {asked} ({detail})"
    if asked != AUTO:
        return f"class sizes: r = {facts['r']:.2f} as asked ({detail})"
    looks = "uneven" if facts["r"] > 0 else "even, as far as can be told"
    return (
        f"class sizes look {looks}: r = {facts['r']:.2f} ({detail}; text bias of {facts['text_bias']:.2f} logits taken "
        f"off; evening sizes out costs {facts['confidence_cost']:.3f} of confidence)"
    )
