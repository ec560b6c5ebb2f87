"""Fetching and unpacking published archives: goes on where it stopped, checks sums, unpacks nothing unsafe."""

import hashlib
import os
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from .file_checks import web_page

BLOCK = 1 << 20
TIMEOUT = 60
FILE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".mat", ".json")
SPECIAL = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz")
Report = Callable[[int, int], None]  # bytes there, bytes in all (0: not known)


def is_file(url: str) -> bool:
    """Whether an address is that of a file, not of a page on which a person has to click."""
    return urllib.parse.urlsplit(url).path.endswith(FILE_ENDINGS)


def fetch(url: str, folder: Path, md5: str = "", report: Report = lambda there, total: None) -> Path:
    """Download a file; one that was begun is gone on with, one that is there and whole is kept.

    Args:
        url: its address.
        folder: where it is to lie.
        md5: its published checksum; empty: none is known.
        report: is told the progress.

    Returns:
        The file.

    Raises:
        ValueError: if the server does not give the file, or gives another one.
    """
    target = folder / PurePosixPath(urllib.parse.urlsplit(url).path).name
    if target.is_file():
        check_sum(target, md5)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        download(url, part, report)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"{url} could not be fetched ({error}); the same command goes on from {part}") from error
    with open(part, "rb") as file:
        if web_page(file.read(512)):
            part.unlink()
            raise ValueError(f"{url} gave a web page in place of the file; open it in a browser")
    try:
        check_sum(part, md5)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, target)
    return target


def download(url: str, part: Path, report: Report) -> None:
    """Append to `part` what is missing of a file."""
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with answer:
        if answer.status != 206:
            there = 0
        total = there + int(answer.headers.get("Content-Length") or 0)
        with open(part, "ab" if there else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                there += len(block)
                report(there, total)
    if there < total:
        raise OSError(f"the connection ended after {there:,} of {total:,} bytes")


def check_sum(path: Path, md5: str) -> None:
    """Compare a file with its published checksum.

    Raises:
        ValueError: if it has another one.
    """
    if not md5:
        return
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    if found.hexdigest() != md5:
        raise ValueError(f"{path} has the md5 {found.hexdigest()}, published is {md5}: it is damaged or another file")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive; its members are looked at before the first one is written.

    Raises:
        ValueError: if a member would leave the folder, is a link or a device, if two would be one file on some disks,
            if there is no room for all, or if the archive cannot be read; of the first four nothing is written.
    """
    try:
        for path, write in members(archive, folder):
            if write is None:
                (folder / path).mkdir(parents=True, exist_ok=True)
            else:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with open(folder / path, "wb") as file:
                    write(file)
    except RefusedArchive:
        raise
    except Exception as error:  # damaged archives make their readers raise almost anything
        raise ValueError(f"{archive} cannot be unpacked: {error or type(error).__name__}") from error


class RefusedArchive(ValueError):
    """An archive that is not unpacked; the sentence names the member that is the reason."""


def members(archive: Path, folder: Path) -> Iterator[tuple[PurePosixPath, Callable | None]]:
    """Paths of an archive's members, and what writes each of them; None for a folder."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            for entry in entries:
                check_member(archive, entry.filename, stat.S_IFMT(entry.external_attr >> 16) not in SPECIAL)
            check_together(archive, folder, {entry.filename: entry.file_size for entry in entries})
            for entry in entries:
                yield PurePosixPath(entry.filename), None if entry.is_dir() else zip_writer(file, entry)
    else:
        with tarfile.open(archive) as file:
            entries = file.getmembers()
            for entry in entries:
                check_member(archive, entry.name, entry.isfile() or entry.isdir())
            check_together(archive, folder, {entry.name: entry.size for entry in entries})
            for entry in entries:
                yield PurePosixPath(entry.name), None if entry.isdir() else tar_writer(file, entry)


def check_member(archive: Path, name: str, plain: bool) -> None:
    """Refuse a member that is no plain file or folder below the place where the archive is unpacked.

    Raises:
        ValueError: naming it.
    """
    parts = name.replace("\\", "/").split("/")
    if not plain:
        raise RefusedArchive(f"{archive} is refused: its member {name!r} is no plain file or folder")
    if not name or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise RefusedArchive(f"{archive} is refused: its member {name!r} would leave the folder")
    if CONTROL.search(name):
        raise RefusedArchive(f"{archive} is refused: the name of its member {name!r} holds control characters")


def check_together(archive: Path, folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse members that do not go together, or for which there is no room.

    Args:
        archive: the archive.
        folder: where it is to be unpacked.
        sizes: bytes of each member, by name.

    Raises:
        ValueError: if names differ in letter case alone, or the members have more bytes than the disk has left.
    """
    seen: dict[str, str] = {}
    for name in sizes:
        other = seen.setdefault(name.rstrip("/").casefold(), name)
        if other.rstrip("/") != name.rstrip("/"):
            raise RefusedArchive(
                f"{archive} is refused: its members {other!r} and {name!r} differ in letter case alone, so that one "
                "would replace the other on some disks"
            )
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    size, free = sum(sizes.values()), shutil.disk_usage(place).free
    if size > free:
        raise RefusedArchive(
            f"{archive} is refused: it unpacks to {size:,} bytes, and {place} has {free:,} left; make room, or name "
            "another folder"
        )


def zip_writer(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable:
    """What copies a member of a zip file to an open file."""

    def write(target) -> None:
        with file.open(entry) as source:
            shutil.copyfileobj(source, target, BLOCK)

    return write


def tar_writer(file: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable:
    """What copies a member of a tar file to an open file."""

    def write(target) -> None:
        with file.extractfile(entry) as source:
            shutil.copyfileobj(source, target, BLOCK)

    return write
