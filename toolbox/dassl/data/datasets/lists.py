"""Published lists of images: one line an image, its path and its label."""

from __future__ import annotations

import os

from dassl.utils.errors import CheckError, MissingFileError


def read_list(fpath: str, first: int = 0) -> list[tuple[str, int]]:
    """Paths with "/" and labels from 0.

    Args:
        fpath: The list; a path may hold blanks.
        first: The smallest label in the list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line does not name an image in the folder of its class, and a label.
    """
    if not os.path.isfile(fpath):
        raise MissingFileError(f'There is no split file "{fpath}"')
    entries = []
    with open(fpath, encoding="utf-8") as file:
        for line in filter(None, map(str.strip, file)):
            path, _, label = line.rpartition(" ")
            if not label.isdigit() or int(label) < first or "/" not in path:
                raise CheckError(f'"{fpath}": expected "class/image label", label from {first}, but got "{line}"')
            entries.append((path, int(label) - first))
    return entries
