"""Unpacking untrusted archives: plain files and folders, inside the target folder, as much as the disk can hold."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from typing import IO

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SPECIAL = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


def unpack_archive(path: str, folder: str) -> None:
    """Unpacks a .zip, .tar or compressed .tar file; all members are looked at before the first one is written.

    Raises:
        ValueError: A member would leave the folder, is a link or a device, has control characters in its name, there
            is no space for all, or the archive is damaged.
    """
    try:
        if path.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                entries = [
                    (entry.filename, stat.S_IFMT(entry.external_attr >> 16) not in SPECIAL, entry.is_dir(),
                     entry.file_size, lambda entry=entry: archive.open(entry))
                    for entry in archive.infolist()
                ]  # fmt: skip
                _unpack(path, folder, entries)
        else:
            with tarfile.open(path) as archive:
                entries = [
                    (entry.name, entry.isfile() or entry.isdir(), entry.isdir(), entry.size,
                     lambda entry=entry: archive.extractfile(entry))
                    for entry in archive.getmembers()
                ]  # fmt: skip
                _unpack(path, folder, entries)
    except _Refused:
        raise
    except Exception as error:  # damaged archives make their readers raise almost anything
        raise ValueError(f'The archive "{path}" cannot be unpacked: {error or type(error).__name__}') from error


class _Refused(ValueError):
    """An archive that is not unpacked."""


def _unpack(path: str, folder: str, entries: list[tuple[str, bool, bool, int, Callable[[], IO[bytes]]]]) -> None:
    """Writes members, given as name, whether it is a plain file or folder, whether it is a folder, bytes, opener."""
    for name, plain, _, _, _ in entries:
        parts = name.replace("\\", "/").split("/")
        if not plain:
            raise _Refused(f'The archive "{path}" is refused: its member {name!r} is no plain file or folder')
        if not name or not parts[0] or ".." in parts or ":" in parts[0]:
            raise _Refused(f'The archive "{path}" is refused: its member {name!r} would leave {folder}')
        if CONTROL.search(name):
            raise _Refused(f'The archive "{path}" is refused: its member {name!r} has control characters in its name')
    size, free = sum(size for _, _, _, size, _ in entries), shutil.disk_usage(folder).free
    if size > free:
        raise _Refused(
            f'The archive "{path}" is refused: it unpacks to {size:,} bytes, and the disk of {folder} has {free:,} left'
        )
    written: list[str] = []
    try:
        for name, _, is_folder, _, opener in entries:
            place = os.path.join(folder, name)
            os.makedirs(place if is_folder else os.path.dirname(place), exist_ok=True)
            if not is_folder:
                with opener() as source, open(place, "wb") as target:
                    written.append(place)
                    shutil.copyfileobj(source, target, 1 << 20)
    except BaseException:  # a part of a data set would be read as all of it
        _remove(written, folder)
        raise


def _remove(files: list[str], folder: str) -> None:
    """Removes files, and the folders above them and below `folder` that are empty then."""
    for file in files:
        os.remove(file)
        place = os.path.dirname(file)
        while place != os.path.normpath(folder) and len(place) > len(folder) and not os.listdir(place):
            os.rmdir(place)
            place = os.path.dirname(place)
