"""Finding the folder of a data set without domains below DATASET.ROOT."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError

from . import packed
from .folders import WRAPPERS, list_folder, open_root, walk_folders
from .spec import Spec, listed, name_key

MOST = 2000  # folders looked into


def places(root: Path, names: Iterable[str], depth: int = 4) -> Iterator[Path]:
    """The root, then the folders in it that are called like one of the names, and so on inside those.

    Args:
        root: where to begin.
        names: names that a data set's folder, or a folder inside it, may have.
        depth: how many levels to go down.
    """
    keys, level = {name_key(name) for name in (*names, *WRAPPERS)}, [root]
    for _ in range(depth + 1):
        yield from level
        level = [folder / name for folder in level for name in list_folder(folder)[0] if name_key(name) in keys]


def find_place(
    cfg, spec: Spec, fits: Callable[[Path], bool], looked_for: str, names: Sequence[str] = (), hint: str = ""
) -> Path:
    """The first folder in DATASET.ROOT that looks like the data set's.

    Args:
        cfg: for the root.
        spec: names of the data set and its folders.
        fits: whether a folder looks like it.
        looked_for: what makes a folder look like it, for the error.
        names: further folder names to go through.
        hint: said at the end of the error.

    Raises:
        MissingFileError: if there is none; says where was looked, and for what.
    """
    root = open_root(cfg.DATASET.ROOT, spec.name)
    seen = []
    for place in places(root, (*spec.folders, *names)):
        if fits(place):
            return place
        seen.append(place)
    inside = "; ".join(
        f"{place} holds {listed([*list_folder(place)[0], *list_folder(place)[1]])}" for place in seen[:4]
    )
    nested = next((folder for folder in itertools.islice(walk_folders(root, depth=5), MOST) if fits(folder)), None)
    if nested is None:
        elsewhere = packed.hint(root, spec.folders)
    else:
        elsewhere = f" It lies in {nested}: set DATASET.ROOT to {nested}."
    raise MissingFileError(
        f"{spec.name} not found in {root}. Looked for {looked_for} in {root.name}/ itself and in folders called "
        f"{listed(spec.folders)} (any letter case, blanks, _ and - alike). {inside}.{hint}{elsewhere} Nothing is "
        "downloaded; see docs/datasets.md"
    )
