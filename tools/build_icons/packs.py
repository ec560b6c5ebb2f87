"""The table of icon packs: versions, licences, and the drawing style of every icon.

`packs.json` lists two disjoint sets of packs: those whose pictures are the data set (`use: data`) and those of other
designers that the model is pre-trained on (`use: pretrain`). A pack's `style` is the family of its plain icons;
`variants` are pairs (pattern, style): the first pattern found in an icon's name decides its style and is cut from the
name, and a style of null leaves the icon out (a second size or weight of a drawing that is already there).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STYLES = ("emoji", "flat", "line", "solid", "duotone")
USES = ("data", "pretrain")
PACKS_FILE = Path(__file__).with_name("packs.json")


@dataclass(frozen=True)
class Pack:
    """One icon pack, pinned to a version, with its author and licence."""

    pack: str
    use: str
    npm: str
    version: str
    style: str
    variants: tuple[tuple[str, str | None], ...]
    title: str
    author: str
    author_url: str
    licence: str
    spdx: str
    licence_url: str
    held_out_with: str = ""

    def classify(self, icon: str) -> tuple[str, str] | None:
        """Style family and bare name of an icon, or None where the icon is left out."""
        for pattern, style in self.variants:
            if re.search(pattern, icon):
                return None if style is None else (style, re.sub(pattern, "", icon))
        return self.style, icon

    def drops(self, style: str) -> bool:
        """Whether the whole pack repeats the drawings of the held-out style in another one."""
        return bool(style) and self.held_out_with == style


@lru_cache(maxsize=1)
def read_packs() -> tuple[Pack, ...]:
    """All packs of `packs.json`, in its order."""
    rows = json.loads(PACKS_FILE.read_text(encoding="utf-8"))["packs"]
    return tuple(Pack(**{**row, "variants": tuple(tuple(pair) for pair in row["variants"])}) for row in rows)


def packs_for(use: str) -> list[Pack]:
    """The packs of one use, `data` or `pretrain`.

    Raises:
        ValueError: if the use is unknown.
    """
    if use not in USES:
        raise ValueError(f"Packs are used for one of {list(USES)}, not for {use!r}.")
    return [pack for pack in read_packs() if pack.use == use]


def check_style(style: str, allowed: Sequence[str] = STYLES) -> str:
    """Return the style if it is known.

    Raises:
        ValueError: if it is not, with the known ones.
    """
    if style not in allowed:
        raise ValueError(f"Unknown style {style!r}; the styles are {', '.join(allowed)}.")
    return style
