"""Numbers at the edge: images without content, NaN in features, a huge logit scale, losses, unread keys."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from dassl_clip.engine.source import source_files

from .probe import ProbeError, Scores
from .session import Session, accuracy
from .suite import Result, check, fails, not_applicable, passes
from .world import Picture, World

HUGE = 1e4  # of the logit scale
IGNORED = ("PREC", "TASKS", "FROM")  # read by the program, or by the toolbox


@check("numbers.losses")
def losses(session: Session) -> Result:
    """Every loss of every step is finite."""
    first = session.first()
    values = [float(value) for step in first.steps for value in step.values() if _is_number(value)]
    own = first.facts.get("losses") or {}
    values += [float(value) for value in own.values()]
    bad = sum(not math.isfinite(value) for value in values)
    if not values:
        return not_applicable("no loss is reported")
    return (fails if bad else passes)(
        f"{bad} of {len(values)} reported losses are not finite", losses=len(values), bad=bad
    )


@check("numbers.constant")
def constant(session: Session) -> Result:
    """A test image of one colour has finite scores, or is refused in one line."""
    return _odd_image(session, "constant", Image.new("RGB", (64, 64), (255, 255, 255)), "an image of one colour")


@check("numbers.grey")
def grey(session: Session) -> Result:
    """An image with one channel is read like any other."""
    picture = session.base.test[0]
    with Image.open(picture.path) as image:
        return _odd_image(session, "grey", image.convert("L"), "an image with one channel")


@check("numbers.nan")
def nan(session: Session) -> Result:
    """NaN in the features of one test image is refused by name, and never counted as a prediction."""
    world, picture = _with_file(session, "nan", Image.new("RGB", (64, 64), (255, 0, 255)))
    try:
        other = session.run("nan", world, prepare=_poison, cache=False)
    except ProbeError as error:
        named = picture.path in error.text or picture.path.rpartition("/")[2] in error.text
        if error.refused:
            return passes(f"refused in one line{', which names the image' if named else ''}: {error.text}", named=named)
        return fails(f"NaN in one image's features: {error.text}")
    bad = _not_finite(other.scores)
    if picture.name not in other.scores:
        return passes("the image is left out")
    return fails(
        f"NaN in one image's features: a prediction all the same, {bad} of {len(other.scores)} scores not finite"
    )


@check("numbers.scale")
def scale(session: Session) -> Result:
    """A huge logit scale gives finite scores, or is refused in one line."""
    if not session.ours:
        return not_applicable("a plain Dassl trainer has no logit scale that is known here")

    def enlarge(trainer: Any) -> None:
        trainer.logit_scale = trainer.logit_scale * HUGE

    try:
        other = session.run("scale", prepare=enlarge)
    except ProbeError as error:
        return (passes if error.refused else fails)(f"a logit scale {HUGE:g} times as large: {error.text}")
    bad = _not_finite(other.scores)
    hits = accuracy(other.scores, session.base.labels())
    text = (
        f"a logit scale {HUGE:g} times as large: {bad} of {len(other.scores)} scores not finite, accuracy {hits:.1f} %"
    )
    return (fails if bad else passes)(text, bad=bad)


@check("numbers.keys")
def keys(session: Session) -> Result:
    """Every key that the method declares is read by a run, or by its files under other settings."""
    node = session.name.upper()
    config = session.config(session.base, "keys")
    declared = sorted(config.TRAINER[node]) if node in config.TRAINER else []
    declared = [key for key in declared if key not in IGNORED]
    if not declared:
        return not_applicable("it declares no key")
    read: set[str] = set()
    session.run("keys", watch_node=(node, read))
    text = "\n".join(file.read_text(encoding="utf-8") for file in source_files(session.kind))
    quiet = [key for key in declared if key not in read]
    own = [key for key in quiet if re.search(rf"\.{key}\b|\[.?{key}.?\]|get\(.{key}.", text)]
    base = [key for key in quiet if key not in own and key not in getattr(session.kind, "settings", {key: 0})]
    unread = [key for key in quiet if key not in own and key not in base]
    facts = {"declared": len(declared), "read": len(declared) - len(quiet), "unread": unread}
    report = f"of {len(declared)} declared keys a run reads {facts['read']}"
    if own or base:
        report += f", other settings {', '.join(own + base)}"
    return (fails if unread else passes)(report + (f"; nothing reads {', '.join(unread)}" if unread else ""), **facts)


def _odd_image(session: Session, label: str, image: Image.Image, what: str) -> Result:
    world, _ = _with_file(session, label, image)
    try:
        other = session.scored(label, world)
    except ProbeError as error:
        return (passes if error.refused else fails)(f"{what}: {error.text}")
    bad = _not_finite(other.scores)
    text = f"{what} among the tested: {bad} of {len(other.scores)} scores not finite"
    return (fails if bad or len(other.scores) != len(world.test) else passes)(text, bad=bad)


def _with_file(session: Session, label: str, image: Image.Image) -> tuple[World, Picture]:
    """The base world with one more test picture, of this content."""
    place = session.folder / "odd" / f"{label}.png"
    place.parent.mkdir(exist_ok=True)
    image.save(place)
    picture = replace(session.base.test[0], name=f"odd/{label}", path=str(place))
    return replace(session.base, test=(*session.base.test, picture)), picture


def _poison(trainer: Any) -> None:
    """Let images of one colour become NaN on their way into the model."""

    def poisoned(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(2).float()
        constant = (flat.amax(dim=2) - flat.amin(dim=2)).amax(dim=1) < 1e-6
        return torch.where(constant[:, None, None, None], float("nan"), images)

    features = getattr(trainer, "features", None)
    if hasattr(features, "to_device"):  # all images of this project's trainers pass through it
        to_device = features.to_device
        features.to_device = lambda images: poisoned(to_device(images))
    else:
        score = trainer.model_inference
        trainer.model_inference = lambda images, *rest, **named: score(poisoned(images), *rest, **named)


def _not_finite(scores: Scores) -> int:
    return sum(not bool(row.isfinite().all()) for row in scores.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
