"""Classes: their order and names, a class without training images, two classes, a class that is not tested."""

from __future__ import annotations

from dataclasses import replace

import torch

from .probe import Outcome, ProbeError
from .session import NOISE, Session, accuracy, changed_classes, differences
from .suite import Result, check, fails, not_applicable, passes

ALL = ("state.same-seed", "labels.selection", "labels.scoring")
SPREAD = 0.2  # of the images: how many more may differ than between two seeds, whose first weights are drawn
NAMES = ("wug", "dax", "blicket", "fep", "toma", "zav")  # words that name nothing


@check("classes.order", *ALL)
def order(session: Session) -> Result:
    """With the classes in another order, and their names with them, the predictions follow."""
    count = len(session.base.classes)
    permuted = tuple((label * 5 + 2) % count if count % 5 else count - 1 - label for label in range(count))
    first, other = session.first(), session.run("permuted", session.base.renumbered(permuted))
    back = torch.tensor(permuted).argsort()
    followed = {name: row[back] for name, row in other.scores.items()}
    gaps, moved = differences(first.scores, followed), changed_classes(first.scores, followed)
    text = f"with the classes permuted, {moved} of {len(first.scores)} predictions do not follow"
    if not gaps:
        return passes(f"{text}; scores agree to {NOISE} nats", predictions=moved, scores=0)
    seeds = changed_classes(first.scores, session.run("seed-2", seed=2).scores)
    facts = {"predictions": moved, "scores": len(gaps), "between_seeds": seeds}
    text += f" ({len(gaps)} scores change; {seeds} predictions differ between two seeds)"
    return (passes if moved <= seeds + SPREAD * len(first.scores) else fails)(text, **facts)


@check("classes.names", *ALL)
def names(session: Session) -> Result:
    """Evidence alone: whether class names decide predictions."""
    first, other = session.first(), session.run("nonsense", replace(session.base, classes=NAMES))
    moved, gaps = changed_classes(first.scores, other.scores), differences(first.scores, other.scores)
    truth = session.base.labels()
    text = f"with nonsense words for class names, {moved} of {len(truth)} predictions change, accuracy "
    text += f"{accuracy(first.scores, truth):.1f} -> {accuracy(other.scores, truth):.1f} %"
    return passes(text, reads=bool(gaps), predictions=moved)


@check("classes.untrained", *ALL)
def untrained(session: Session) -> Result:
    """A class without a training image is scored like any other, or refused in one line."""
    count, world = len(session.base.classes), session.base
    try:
        other = session.run("untrained", world.of_classes(range(count - 1), "train", "val"))
    except ProbeError as error:
        return _refusal(error, "a class without a training image")
    return _columns(session, other, count, "a class without a training image")


@check("classes.two", *ALL)
def two(session: Session) -> Result:
    """Two classes work."""
    try:
        other = session.run("two-classes", session.base.two_classes())
    except ProbeError as error:
        return _refusal(error, "two classes")
    return _columns(session, other, 2, "two classes")


@check("classes.absent", *ALL, "images.swapped")
def absent(session: Session) -> Result:
    """A class that is not tested keeps its column: the number of classes does not come from test labels."""
    count, first = len(session.base.classes), session.first()
    try:
        other = session.run("absent", session.base.of_classes(range(count - 1), "test"))
    except ProbeError as error:
        return fails(f"a class that is not tested: {error.text}")
    widths = sorted({len(row) for row in other.scores.values()})
    if widths != [count]:
        return fails(f"{count} classes, the last of which is not tested: scores of {widths} classes", classes=widths)
    gaps = differences(first.scores, other.scores)
    text = f"without the last class in the test set, scores still have {count} classes; {len(gaps)} of "
    text += f"{len(other.scores)} change"
    if gaps and session.declares_transductive is False:
        return fails(f"{text}, but the method says that it is not transductive", classes=widths, scores=len(gaps))
    return passes(text, classes=widths, scores=len(gaps))


def _refusal(error: ProbeError, what: str) -> Result:
    if error.refused:
        return not_applicable(f"{what} is refused in one line: {error.text}")
    return fails(f"{what}: {error.text}")


def _columns(session: Session, other: Outcome, count: int, what: str) -> Result:
    """Scores of all classes, all finite."""
    widths = sorted({len(row) for row in other.scores.values()})
    bad = sum(not bool(row.isfinite().all()) for row in other.scores.values())
    hits = accuracy(other.scores, session.base.labels())
    text = (
        f"{what}: scores of {', '.join(map(str, widths))} classes, {bad} of {len(other.scores)} not finite, accuracy "
    )
    return (fails if bad or widths != [count] else passes)(f"{text}{hits:.1f} %", classes=widths, bad=bad)
