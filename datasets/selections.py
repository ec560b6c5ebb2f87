"""The images of a few-shot draw, kept as JSON in the user's cache folder.

Each draw is written to `selections/<data set>/` in the cache folder (see `cache`), never beside the data. Paths are
relative, so a file can be handed on: DATASET.SELECTION names one to train on instead of drawing. No selection is ever
read unasked, so that no stale file decides what a run trains on.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import cache_dir, no_file

from .cache import write_text
from .folders import ImageFile

logger = logging.getLogger(__name__)

VERSION = 1
MARK = 12  # letters of a content's hash in its file's name
NAME = re.compile(rf"\d+shots-(?:seed\d+|unseeded)-([0-9a-f]{{{MARK}}})\.json")


def write_selection(
    dataset: str, facts: Mapping[str, object], train: Sequence[ImageFile], val: Sequence[ImageFile]
) -> Path | None:
    """Keep a draw; the file's name tells shots and seed, and a hash tells draws from other images apart.

    Args:
        dataset: registry name.
        facts: shots, seed, sources, targets and protocol of the draw.
        train: images drawn for training.
        val: images drawn for validation.

    Returns:
        The file, or None if there is no cache folder or it cannot be written to.
    """
    lists = {"train": train, "val": val}
    data = {"version": VERSION, "dataset": dataset, **facts}
    data |= {part: [[image.key, image.label] for image in images] for part, images in lists.items()}
    text = json.dumps(data, ensure_ascii=False, indent=0)
    mark = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:MARK]
    seed = facts["seed"]
    name = f"{facts['shots']}shots-{f'seed{seed}' if isinstance(seed, int) and seed >= 0 else 'unseeded'}-{mark}.json"
    folder = cache_dir()
    if folder is None:
        return None
    path = folder / "selections" / dataset / name
    if path.is_file() and _mark(path) == mark:
        return path
    try:
        write_text(path, text)
    except OSError as error:
        logger.info("%s: the selection is not kept, since %s cannot be written: %s", dataset, path, error)
        return None
    return path


def _mark(path: Path) -> str:
    """The hash in the name of a file with this content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:MARK]


def read_selection(
    path: str, dataset: str, shots: int, train: Sequence[ImageFile], val: Sequence[ImageFile]
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The images of a stored selection.

    Args:
        path: DATASET.SELECTION.
        dataset: registry name.
        shots: DATASET.NUM_SHOTS.
        train: images that training may draw from.
        val: images that validation may draw from.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if it is no selection of this data set and number of shots, or names images that may not be used.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"DATASET.SELECTION: {no_file(file)}")
    named = NAME.fullmatch(file.name)
    if named is not None and _mark(file) != named[1]:
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
