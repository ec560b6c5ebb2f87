"""Which images are used: hold-out, few-shot draw and subsets of classes.

The few-shot draw follows Dassl's `DatasetBase.generate_fewshot_dataset` call for call, with a generator of its own
instead of Python's global one: after `random.seed(s)` there, and with `random.Random(s)` here, the same list gives
the same images.
"""

import logging
import math
import random
from collections.abc import Sequence

from dassl_clip.results.errors import UserError

from .duplicates import once
from .folders import ImageFile
from .spec import did_you_mean, listed

logger = logging.getLogger(__name__)

SUBSETS = ("all", "base", "new")
VAL_SHOTS = 4
HOLDOUT_SEED = 0


def by_label(images: Sequence[ImageFile]) -> dict[int, list[ImageFile]]:
    """Images of each label, labels in the order in which they first appear."""
    groups: dict[int, list[ImageFile]] = {}
    for image in images:
        groups.setdefault(image.label, []).append(image)
    return groups


def draw_shots(images: Sequence[ImageFile], shots: int, generator: random.Random) -> list[ImageFile]:
    """`shots` images of each label, or all of a label that has fewer; labels in order of first appearance."""
    drawn = []
    for group in by_label(images).values():
        drawn += generator.sample(group, shots) if len(group) >= shots else group
    return drawn


def check_shots(images: Sequence[ImageFile], shots: int, classes: Sequence[str], name: str) -> None:
    """Warn of classes that have fewer images than shots are asked for.

    Raises:
        UserError: if no class has that many.
    """
    sizes = {label: len(group) for label, group in by_label(images).items()}
    most = max(sizes.values(), default=0)
    if shots > most:
        raise UserError(
            f"DATASET.NUM_SHOTS is {shots}, but no class of {name} has more than {most} training images in the source "
            f"domains; take at most {most}, or -1 for all images"
        )
    short = [f"{classes[label]} {size}" for label, size in sorted(sizes.items()) if size < shots]
    if short:
        logger.warning(
            "%s: %d of %d classes have fewer than %d training images, all of which are used: %s",
            *(name, len(short), len(sizes), shots, listed(short)),
        )


def hold_out(images: Sequence[ImageFile], seed: int, part: str) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split images into 80 % and 20 % of each class, both in the order given.

    The draw of a class depends on the seed, the part's name, the label and the class's images, and on nothing else. A
    fifth is rounded down, but two images or more give at least one; a single image stays in the first list.

    Args:
        images: the images of one domain.
        seed: negative means `HOLDOUT_SEED`, since a hold-out that differs at each start would let tested images train.
        part: name of what is split, such as the domain.
    """
    seed, images = seed if seed >= 0 else HOLDOUT_SEED, once(images)
    held = set()
    for label, group in by_label(images).items():
        count = max(1, len(group) // 5) if len(group) > 1 else 0
        held |= {image.key for image in random.Random(f"{seed}/{part}/{label}").sample(group, count)}
    return [image for image in images if image.key not in held], [image for image in images if image.key in held]


def subset_labels(number: int, subset: str) -> range:
    """Labels of a class subset: all of them, the first half (rounded up) = base, or the rest = new.

    Raises:
        UserError: for another word, or if the half asked for is empty.
    """
    if subset not in SUBSETS:
        hint = did_you_mean(subset, SUBSETS)
        raise UserError(f'DATASET.SUBSAMPLE_CLASSES is "{subset}"; it must be one of {", ".join(SUBSETS)}.{hint}')
    half = math.ceil(number / 2)
    labels = {"all": range(number), "base": range(half), "new": range(half, number)}[subset]
    if not labels:
        raise UserError(f'DATASET.SUBSAMPLE_CLASSES is "{subset}", which leaves none of the {number} classes')
    return labels
