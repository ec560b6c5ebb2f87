"""One file that is named twice: by two links, by two spellings of its path, or by two lines of a list.

Files are compared by their resolved path. Each folder is resolved once, and links are followed in the folders whose
listing has any, so that nothing is asked of the disk for each file of an ordinary folder. Copies, which are files of
their own, are looked for by `dassl-clip data verify --duplicates`.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

from dassl_clip.results.errors import UserError

from .folders import ImageFile, holds_links

logger = logging.getLogger(__name__)

Parts = dict[str, dict[str, list[ImageFile]]]  # pool -> part -> images


def real_paths(images: Iterable[ImageFile]) -> Iterator[str]:
    """The file that each image is, all links followed."""
    folders: dict[str, tuple[str, bool]] = {}
    for image in images:
        folder, _, name = image.path.rpartition(os.sep)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder), holds_links(folder)
        real, links = folders[folder]
        path = image.path if real == folder else f"{real}{os.sep}{name}"
        while links:
            try:
                target = os.path.join(real, os.readlink(path))
            except OSError:  # a file
                break
            folder, _, name = target.rpartition(os.sep)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder), True
            real = folders[folder][0]
            path = f"{real}{os.sep}{name}"
        yield path


def count_once(parts: Parts, sources: Sequence[str], names: Sequence[str] = (), two_classes: bool = False) -> Parts:
    """Images by pool and part, each file once; a warning counts those that are left out.

    A file with two classes is refused unless `two_classes` says that the data set has such, and one that is trained on
    and would be validated on or tested. `sources` are the pools that train; the others are only tested, with all their
    parts. `names` are the class names, for the error.
    """
    every = [(pool, part, image) for pool, lists in parts.items() for part, images in lists.items() for image in images]
    paths = [image.path for *_, image in every]
    folders = {path[: path.rfind(os.sep)] for path in paths}
    apart = len({os.path.realpath(folder) for folder in folders}) == len(folders)
    if len(set(paths)) == len(paths) and apart and not any(map(holds_links, folders)):
        return parts
    real = list(real_paths(image for *_, image in every))
    if len(set(real)) == len(real):
        return parts
    first: dict[tuple[str, int | None], tuple[str, str, ImageFile]] = {}
    kept: Parts = {pool: {part: [] for part in lists} for pool, lists in parts.items()}
    classes, leaks, twice = [], [], []
    for path, entry in zip(real, every):
        pool, part, image = entry
        other_pool, other_part, other = first.setdefault((path, image.label if two_classes else None), entry)
        if other is image:
            kept[pool][part].append(image)
            continue
        pair = other.path if other.path == image.path else f"{other.path} = {image.path}"
        if other.label != image.label:
            both = [f'"{names[label]}"' if names else f"label {label}" for label in (other.label, image.label)]
            classes.append(f"{' and '.join(both)}: {pair}")
        elif (part if pool in sources else "test") != (other_part if other_pool in sources else "test"):
            places = [" ".join(filter(None, place)) for place in ((other_pool, other_part), (pool, part))]
            leaks.append(f"{' and '.join(places)}: {pair}")
        else:
            twice.append(pair)
    if classes:
        raise UserError(f"{counted(classes)} in two classes, first in {classes[0]}; keep it in one of them")
    if leaks:
        raise UserError(
            f"{counted(leaks)} in two parts, so that what trains would be validated on or tested, first in {leaks[0]}; "
            "keep it in one of them"
        )
    if twice:
        logger.warning("%s listed before and counted once, first: %s", counted(twice), twice[0])
    return kept


def counted(files: Sequence[str]) -> str:
    """`1 file is` or `3 files are`."""
    return "1 file is" if len(files) == 1 else f"{len(files)} files are"
