"""A user's own images without a data set: the files that paths, folders and patterns name, and class names."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from . import image_rows
from .errors import MissingFileError, UserError
from .files import no_file
from .image_formats import IGNORED_FOLDERS, is_image


def find_images(given: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that were named, and all images in and below the folders, each once, folders in sorted order.

    A name with `*`, `?` or `[` that is no file stands for all that it matches, in sorted order; `**` for any folders.
    A parquet or arrow file stands for all its rows; `FILE.parquet#7` is one of them.

    Raises:
        MissingFileError: a name that does not exist.
        UserError: no image at all.
    """
    images: dict[Path, None] = {}
    for path in (path for name in given for path in _matched(name)):
        if path.suffix in image_rows.ENDINGS and path.is_file():
            table = image_rows.open_table(path)
            images |= dict.fromkeys(Path(table.address(row)) for row in range(table.rows))
        elif path.is_file() or (image_rows.split_address(path) and os.path.isfile(image_rows.file_of(path))):
            images[path] = None
        elif not path.is_dir():
            raise MissingFileError(no_file(path).replace("no file ", "no file or folder "))
        for folder, below, files in os.walk(path):
            below[:] = sorted(name for name in below if not name.startswith(".") and name not in IGNORED_FOLDERS)
            for name in sorted(files):
                if is_image(name) and not name.startswith("."):
                    images[Path(folder) / name] = None  # a pipe or a link to nothing is named when it is read
    if not images:
        names = ", ".join(str(os.fspath(name)) for name in given)
        raise UserError(f"there are no images in {names}: files ending in jpg, png, webp, ... are read")
    return list(images)


def _matched(name: str | os.PathLike[str]) -> list[Path]:
    path = Path(name).expanduser()
    if not glob.has_magic(str(path)) or path.exists():
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    return list(map(Path, found)) or [path]


def given_names(text: str, origin: str = "--names") -> list[str]:
    """Class names with commas between them, or from a file with one per line.

    Raises:
        UserError: fewer than two names, or one name twice.
    """
    path = Path(text).expanduser()
    try:
        is_file = path.is_file()
        if not is_file and path.exists():
            raise UserError(f"{origin}: {no_file(path)}")
    except OSError:  # too long for a file name
        is_file = False
    if is_file:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{origin}: {path} is not a text in UTF-8 (byte {error.start})") from error
    else:
        lines = text.split(",")
    names = [name for name in map(str.strip, lines) if name]
    missing = f" (and there is no file {path})" if not is_file and ("/" in text or path.suffix) else ""
    return checked_names(names, origin, missing)


def checked_names(names: Sequence[str], origin: str, missing: str = "") -> list[str]:
    """The names, if they are those of a classifier.

    Raises:
        UserError: fewer than two names, or one name twice.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(
            f"{origin} has '{twice[0]}' {list(names).count(twice[0])} times; each class needs a name of its own"
        )
    if len(names) < 2:
        raise UserError(f"{origin} gives {len(names)} name{missing}: at least two classes are needed, as in 'cat,dog'")
    return list(names)
