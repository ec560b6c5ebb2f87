"""Finding the files that a list names, by reading each folder once.

A path of a list is looked for below a folder, whether it is written from there (`a/b.jpg`, `./a//b.jpg`, `a\\b.jpg`) or
from the top of the disk; where the disk has it in another letter case, or in a folder that is
nested once too often (`cars_train/cars_train/00001.jpg`), that file is meant.
"""

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

from .folders import list_folder


def clean_path(path: str) -> str:
    """A listed path with `/` between its steps and without `.`, `..` and empty steps."""
    path = posixpath.normpath(path.strip().replace("\\", "/"))
    return path[1:] if path.startswith("//") else path


def below(path: str, folders: Iterable[Path]) -> str:
    """An absolute path from the first of some folders on that it lies in; any other path as it is."""
    if path.startswith("/"):
        for folder in folders:
            for top in dict.fromkeys((str(folder), os.path.realpath(folder))):
                if path.startswith(f"{top}/"):
                    return path[len(top) + 1 :]
    return path


class FileFinder:
    """Paths of listed files below a folder.

    Args:
        base: the folder.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, Path | None] = {"": base}
        self._names: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}

    def key(self, path: str) -> str:
        """A clean path from the folder on."""
        return below(path, [self.base]).lstrip("/")

    def find(self, path: str) -> str | None:
        """Where the file lies that a list calls by a clean `path`, or None."""
        if path.startswith("../"):
            place = os.path.normpath(self.base / path)
            return place if os.path.isfile(place) else None
        path = self.key(path)
        parent, _, name = path.rpartition("/")
        folder = self._folder(parent)
        while folder is not None:
            _, files = self._listing(folder)
            found = files.get(name) or files.get(name.casefold())
            if found is not None:
                return os.path.join(folder, found)
            folder = self._inner(folder)
        return None

    def find_all(self, paths: Iterable[str]) -> tuple[list[str], list[str]]:
        """Places of all files that are there, and the listed paths of those that are not."""
        found, missing = [], []
        for path in paths:
            place = self.find(path)
            if place is None:
                missing.append(path)
            else:
                found.append(place)
        return found, missing

    def _folder(self, path: str) -> Path | None:
        if path not in self._folders:
            parent, _, name = path.rpartition("/")
            above, place = self._folder(parent), None
            while above is not None and place is None:
                folders, _ = self._listing(above)
                match = folders.get(name) or folders.get(name.casefold())
                place, above = (above / match, None) if match is not None else (None, self._inner(above))
            self._folders[path] = place
        return self._folders[path]

    def _inner(self, folder: Path) -> Path | None:
        """The sub-folder that is called like the folder itself."""
        name = self._listing(folder)[0].get(folder.name)
        return folder / name if name is not None else None

    def _listing(self, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
        """Sub-folders and files by name, and by name in lower case."""
        if folder not in self._names:
            self._names[folder] = tuple(
                {**{name.casefold(): name for name in reversed(names)}, **{name: name for name in names}}
                for names in list_folder(folder)
            )
        return self._names[folder]


def best_base(bases: Sequence[Path], paths: Sequence[str], most: int = 40) -> tuple[Path | None, list[str]]:
    """The folder below which most of a sample of listed files lie, and the sample's paths; None if none lies in any.

    Args:
        bases: folders to try; the first of equally good ones is taken.
        paths: the listed paths.
        most: size of the sample, spread evenly over the list.
    """
    sample = list(paths[:: max(1, len(paths) // most)])
    counts = [len(FileFinder(base).find_all(sample)[0]) for base in bases]
    if not any(counts):
        return None, sample
    return bases[counts.index(max(counts))], sample
