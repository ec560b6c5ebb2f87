"""What the score of an image depends on beside the image: other tested images, their order, batch, names and domains.

A method that says that it is transductive may read all unlabelled test images. Nothing may depend on the size of the
evaluation batch, on file names, or on domains that are neither trained on nor tested.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from .probe import Outcome
from .session import FAINT, NOISE, Session, changed_classes, differences, most
from .suite import Result, check, fails, passes
from .world import OTHER, Picture, World, copied

ALL = ("state.same-seed", "labels.selection", "labels.scoring")
BATCHES = (1, 7, 64)
RELATED = 4  # test pictures that are changed one after another


@check("images.batch", *ALL)
def batch(session: Session) -> Result:
    """The size of the evaluation batch changes no score."""
    first = session.first()
    gaps = {}
    for size in BATCHES:
        other = session.scored(f"batch-{size}", session.base, [("DATALOADER.TEST.BATCH_SIZE", str(size))])
        gaps[size] = differences(first.scores, other.scores)
    worst = max(gaps, key=lambda size: len(gaps[size]))
    text = (
        f"with evaluation batches of {', '.join(map(str, BATCHES))}, up to {len(gaps[worst])} of {len(first.scores)} "
    )
    text += f"scores change{most(gaps[worst])}"
    facts = {"scores": {str(size): len(found) for size, found in gaps.items()}}
    if gaps[worst]:
        return fails(f"{text} (batch {worst}): images of a batch are scored together, or normalise it", **facts)
    return passes(text, **facts)


@check("images.swapped", *ALL, "images.batch")
def swapped(session: Session) -> Result:
    """The other tested images, unlabelled, matter only to a method that says that it is transductive."""
    return _depends(session, session.swapped(), "half of the test images swapped for those of another domain", True)


@check("images.changed", *ALL, "images.batch", "images.swapped")
def changed(session: Session) -> Result:
    """One changed test image changes no other prediction, unless the method says that it is transductive."""
    return _depends(session, _with_changed(session, 0), "one test image changed")


@check("images.halved", *ALL, "images.batch", "images.swapped")
def halved(session: Session) -> Result:
    """Half of the test set gives the same scores, unless the method says that it is transductive."""
    kept = session.kept()
    world = replace(session.base, test=tuple(p for p in session.base.test if p.name in kept))
    return _depends(session, session.scored("halved", world), "the test set halved")


@check("images.doubled", *ALL, "images.batch", "images.swapped")
def doubled(session: Session) -> Result:
    """A test set in which every image stands twice gives the same scores, unless it says that it is transductive."""
    folder = session.folder / "doubled"
    twins = tuple(copied(p, folder, f"twin-{Path(p.path).name}", name=f"twin {p.name}") for p in session.base.test)
    world = replace(session.base, test=session.base.test + twins)
    return _depends(session, session.scored("doubled", world), "the test set doubled")


@check("images.order", *ALL, "images.batch")
def order(session: Session) -> Result:
    """The order of the test images changes no score, unless the method says that it is transductive."""
    world = replace(session.base, test=tuple(reversed(session.base.test)))
    return _depends(session, session.scored("reversed", world), "the test images in reverse order")


@check("images.past", *ALL, "images.batch")
def past(session: Session) -> Result:
    """Evidence alone: whether an image's score depends on all tested images, or on those before it in some order."""
    first = session.first()
    if not _sees_others(session):
        return passes("no score depends on other tested images", reads="none")
    runs = [_with_changed(session, number) for number in range(RELATED)]
    names = [_test_picture(session, number).name for number in range(RELATED)]
    touches = [[bool(differences({b: first.scores[b]}, run.scores, 1e-4)) for b in names] for run in runs]
    pairs = [(touches[a][b], touches[b][a]) for a in range(RELATED) for b in range(a)]
    one_way, both = sum(a != b for a, b in pairs), sum(a and b for a, b in pairs)
    reads = "past" if one_way > both else "all"
    text = (
        f"of {len(pairs)} pairs of test images, {both} change each other's scores and {one_way} one the other's alone"
    )
    return passes(text, reads=reads, both=both, one_way=one_way)


@check("images.prior", *ALL, "images.batch")
def prior(session: Session) -> Result:
    """Evidence alone: whether images go to classes that do not occur, when the test set shows two classes only."""
    first = session.first()
    if not _sees_others(session):
        return passes("no score depends on other tested images, so none on their class sizes", assumes=False)
    labels = (0, 1)
    other = session.scored("two-of-all", session.base.of_classes(labels, "test"))
    count = len(other.scores)
    both = (first.scores, other.scores)
    strayed = [sum(int(scores[name].argmax()) not in labels for name in other.scores) for scores in both]
    text = f"with {len(labels)} of {len(session.base.classes)} classes tested, {strayed[1]} of {count} images go to "
    text += f"absent classes, {strayed[0]} in the whole set"
    assumes = strayed[1] > strayed[0] + 0.2 * count
    return passes(text + ("; equal class sizes are assumed" if assumes else ""), assumes=assumes, strayed=strayed)


@check("images.domains", *ALL)
def domains(session: Session) -> Result:
    """Domains that are neither trained on nor tested change no score, on the disk or in a run before."""
    first = session.first()
    copy = session.folder / "without" / "pool"
    for domain in {*session.base.sources, *session.base.targets}:
        shutil.copytree(session.pool.folder / domain, copy / domain, dirs_exist_ok=True)
    moved = session.base.mapped(
        lambda p: replace(p, path=str(copy / Path(p.path).relative_to(session.pool.folder))),
        "train", "val", "test", "unlabelled",
    )  # fmt: skip
    without = session.run("without-others", moved)
    session.run("other-domain", session.pool.world((OTHER,), OTHER), root="shared")
    after = session.run("after-other", root="shared")
    gaps = [differences(first.passes[0], outcome.scores) for outcome in (without, after)]
    text = (
        f"with the other domains' images removed, {len(gaps[0])} of {len(first.scores)} scores change; after a run on "
    )
    text += f"another domain under the same DATASET.ROOT, {len(gaps[1])}"
    return (fails if any(gaps) else passes)(text, removed=len(gaps[0]), after=len(gaps[1]))


@check("images.names", *ALL)
def names(session: Session) -> Result:
    """File and folder names of test images change no score: the same pixels under other names."""
    folder = session.folder / "renamed"

    def rename(number: int, picture: Picture) -> Picture:
        place = folder / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture.path, place)
        return replace(picture, path=str(place))

    test = tuple(rename(number, picture) for number, picture in enumerate(session.base.test))
    first, other = session.first(), session.scored("renamed", replace(session.base, test=test))
    gaps, moved = differences(first.scores, other.scores), changed_classes(first.scores, other.scores)
    text = f"with the test files renamed, {moved} of {len(first.scores)} predictions and {len(gaps)} scores change"
    return (fails if gaps else passes)(text + most(gaps), predictions=moved, scores=len(gaps))


def _depends(session: Session, other: Outcome, what: str, strict: bool = False) -> Result:
    """Whether the scores of the pictures that are in both worlds change, against what the method says of itself.

    Args:
        session: of the method.
        other: the probe.
        what: what is other in it.
        strict: a method that says that it is transductive has to change.
    """
    first, declared = session.first(), session.declares_transductive
    least = FAINT if declared is False else NOISE
    gaps, moved = differences(first.scores, other.scores, least), changed_classes(first.scores, other.scores)
    common = len(first.scores.keys() & other.scores.keys())
    text = f"{what}: {len(gaps)} of {common} other scores change{most(gaps)}, {moved} predictions"
    facts = {"scores": len(gaps), "predictions": moved, "images": common, "declared": declared}
    if gaps and declared is False:
        return fails(f"{text}, but the method says that it is not transductive", **facts)
    if not gaps and declared and strict:
        return fails(f"{text}, but the method says that it is transductive", **facts)
    return passes(text + (", as a transductive method's may" if gaps else ""), **facts)


def _sees_others(session: Session) -> bool:
    """Whether swapped or reordered test images change the scores of the rest."""
    return bool(differences(session.first().scores, session.swapped().scores))


def _test_picture(session: Session, number: int) -> Picture:
    """One of a few test pictures, spread over the set."""
    return session.base.test[number * (len(session.base.test) - 1) // (RELATED - 1)]


def _with_changed(session: Session, number: int) -> Outcome:
    """The base world with the pixels of one test picture replaced; its score is left out of comparisons."""
    picture = _test_picture(session, number)
    stranger = session.pool.pictures[OTHER, "train"][number]
    place = session.folder / f"changed-{number}" / Path(picture.path).name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stranger.path, place)

    def change(other: Picture) -> Picture:
        return replace(other, path=str(place), name=f"changed {other.name}") if other.name == picture.name else other

    world: World = session.base.mapped(change, "test")
    return session.scored(f"changed-{number}", world)
