"""Which images are used: hold-out, few-shot draw, stored selections and subsets of classes.

The few-shot draw follows Dassl's `DatasetBase.generate_fewshot_dataset` call for call, with a generator of its own
instead of Python's global one: after `random.seed(s)` there, and with `random.Random(s)` here, the same list gives
the same images. Each draw is written as JSON to `selections/<data set>/` in the cache folder, never beside the data.
Paths are relative, so a file can be handed on: DATASET.SELECTION names one to train on instead of drawing. No
selection is read that is not named, so that no stale file decides what a run trains on.
"""

import hashlib
import json
import logging
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import cache_dir, no_file, write_bytes_atomically

from .duplicates import count_once
from .folders import ImageFile
from .options import choice
from .spec import listed

logger = logging.getLogger(__name__)

SUBSETS = ("all", "base", "new")
VAL_SHOTS = 4
HOLDOUT_SEED = 0
VERSION = 1  # of the format of selections
MARK = 12  # letters of a content's hash in its file's name
NAME = re.compile(rf"\d+shots-(?:seed\d+|unseeded)-([0-9a-f]{{{MARK}}})\.json")


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
    """Warn of classes that have fewer images than shots are asked for; a UserError if all classes have."""
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
    """Split images of one domain into 80 % and 20 % of each class, both in the order given.

    The draw of a class depends on the seed, the name of the `part`, the label and the class's images, and on nothing
    else. A fifth is rounded down, but two images or more give at least one; a single image stays in the first list. A
    negative seed means `HOLDOUT_SEED`, since a hold-out that differs at each start would let tested images train.
    """
    seed, held = seed if seed >= 0 else HOLDOUT_SEED, set()
    # Before one file would be drawn into both parts; whether it may have two classes is asked of the whole data set.
    images = count_once({"": {"": list(images)}}, [""], two_classes=True)[""][""]
    for label, group in by_label(images).items():
        count = max(1, len(group) // 5) if len(group) > 1 else 0
        held |= {image.key for image in random.Random(f"{seed}/{part}/{label}").sample(group, count)}
    return [image for image in images if image.key not in held], [image for image in images if image.key in held]


def subset_labels(number: int, subset: str) -> range:
    """Labels of a class subset: all of them, the first half (rounded up) = base, or the rest = new."""
    half = math.ceil(number / 2)
    ranges = {"all": range(number), "base": range(half), "new": range(half, number)}
    labels = ranges[choice("SUBSAMPLE_CLASSES", subset, SUBSETS)]
    if not labels:
        raise UserError(f'DATASET.SUBSAMPLE_CLASSES is "{subset}", which leaves none of the {number} classes')
    return labels


def write_selection(
    dataset: str, facts: Mapping[str, Any], train: Sequence[ImageFile], val: Sequence[ImageFile]
) -> Path | None:
    """Store a draw; the file's name tells shots and seed, and a hash tells draws from other images apart.

    Returns the file, or None if there is no cache folder or it cannot be written to. `facts` are shots, seed, sources,
    targets and protocol of the draw.
    """
    folder, seed = cache_dir(), facts["seed"]
    if folder is None:
        return None
    data = {"version": VERSION, "dataset": dataset, **facts}
    for part, images in (("train", train), ("val", val)):
        data[part] = [[image.key, image.label] for image in images]
    content = json.dumps(data, ensure_ascii=False, indent=0).encode("utf-8", "surrogateescape")
    mark = hashlib.sha256(content).hexdigest()[:MARK]
    path = folder / "selections" / dataset
    path /= f"{facts['shots']}shots-{f'seed{seed}' if seed >= 0 else 'unseeded'}-{mark}.json"
    try:
        if not path.is_file() or path.read_bytes() != content:
            write_bytes_atomically(path, content)
    except OSError as error:
        logger.info("%s: the selection is not stored, since %s cannot be written: %s", dataset, path, error)
        return None
    return path


def read_selection(
    path: str, dataset: str, shots: int, train: Sequence[ImageFile], val: Sequence[ImageFile]
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The images of a stored selection, of those that training and validation may draw from.

    Raises:
        UserError: if it is no selection of this data set and number of shots, or names images that may not be used.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"DATASET.SELECTION: {no_file(file)}")
    named = NAME.fullmatch(file.name)
    if named is not None and hashlib.sha256(file.read_bytes()).hexdigest()[:MARK] != named[1]:
        raise UserError(
            f"DATASET.SELECTION: the content of {file} is not the one that this program wrote under this name, which "
            "ends with its hash: draw again, or give a file that you have changed another name"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig", errors="surrogateescape"))
        lists = {part: [str(key) for key, _ in data[part]] for part in ("train", "val")}
        stored = (data["dataset"], data["shots"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"DATASET.SELECTION: {file} is no selection as this program writes them: {error!r}") from error
    if stored != (dataset, shots):
        raise UserError(
            f"DATASET.SELECTION: {file} holds {stored[1]} shots of {stored[0]}, but {shots} shots of {dataset} are "
            "asked for by DATASET.NAME and DATASET.NUM_SHOTS"
        )
    chosen = []
    for part, pool in (("train", train), ("val", val)):
        images = {image.key: image for image in pool}
        unknown = [key for key in lists[part] if key not in images]
        if unknown:
            raise UserError(
                f"DATASET.SELECTION: {len(unknown)} of {len(lists[part])} {part} images of {file} are none that this "
                f"run may use for it, first: {unknown[0]}. Domains and DATASET.PROTOCOL must be those of the draw"
            )
        chosen.append([images[key] for key in lists[part]])
    return chosen[0], chosen[1]
