"""Fetching and unpacking published archives: resumes what was begun, checks sums, unpacks nothing unsafe."""

import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path, PurePosixPath

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import is_web_page

BLOCK = 1 << 20
TIMEOUT = 60  # seconds without any answer
PATIENCE, SLOWEST = 60, 60 * 1024  # seconds, and the bytes that must have come in them
CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")
FILE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".mat", ".json")
SPECIAL = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz")
Report = Callable[[int, int], None]  # bytes there, bytes in all (0: not known)


def is_file(url: str) -> bool:
    """Whether an address is that of a file, not of a page on which a person has to click."""
    return urllib.parse.urlsplit(url).path.endswith(FILE_ENDINGS)


def fetch(url: str, folder: Path, md5: str = "", report: Report = lambda there, total: None) -> Path:
    """Download a file; one that was begun is resumed, one that is there and whole is kept.

    The bytes go into `<name>.part`, with the server's mark of their version in `<name>.part.json`; the file gets its
    name when it is whole: by its checksum, or by the length that the server gives, or by its own format.

    Args:
        url: its address.
        folder: where it is to lie.
        md5: its published checksum; empty: none is known.
        report: called with the progress.

    Returns:
        The file.

    Raises:
        UserError: if the server does not give the file, or gives another one.
    """
    target = folder / PurePosixPath(urllib.parse.urlsplit(url).path).name
    if target.is_file():
        check_sum(target, md5)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    mark = target.with_name(f"{target.name}.part.json")
    try:
        total = download(url, part, mark, bool(md5), report)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"{url} could not be fetched ({error}); the same command resumes from {part}") from error
    try:
        with open(part, "rb") as file:
            if is_web_page(file.read(512)):
                raise UserError(f"{url} gave a web page in place of the file; open it in a browser")
        check_sum(part, md5)
        if not md5 and not total:
            check_format(part, target.name)
    except ValueError:
        part.unlink()
        mark.unlink(missing_ok=True)
        raise
    os.replace(part, target)
    mark.unlink(missing_ok=True)
    return target


def download(url: str, part: Path, mark: Path, checked: bool, report: Report) -> int:
    """Write to `part` what is missing of a file, or all of it if the server has another version by now.

    Args:
        url: its address.
        part: what is there of it.
        mark: the server's mark of the version that `part` is of.
        checked: whether a checksum will tell if the pieces are of two versions.
        report: called with the progress.

    Returns:
        Its length, 0 if the server does not say.

    Raises:
        OSError: the file did not come whole, or too slowly.
    """
    there, known = part.stat().st_size if part.is_file() else 0, read_mark(mark)
    answer = None
    if there and (known.get("version") or checked):  # otherwise nothing says that the rest is of the same file
        headers = {"Range": f"bytes={there}-", "If-Range": known.get("version", "")}
        headers = {key: value for key, value in headers.items() if value}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            if there == (ranges(error.headers)[1] or known.get("total")):
                return there
    if answer is not None and answer.status == 206:
        start, total = ranges(answer.headers)
        if start != there or known.get("total") not in (None, 0, total):
            answer.close()
            answer = None
    else:
        there = 0
    if answer is None:
        there, answer = 0, urllib.request.urlopen(url, timeout=TIMEOUT)
    with answer:
        if there == 0 and answer.status != 200:
            raise OSError(f"the server answers {answer.status} {answer.reason} in place of the file")
        length = answer.headers.get("Content-Length") or ""
        if not there or not total:
            total = there + int(length) if length.isdigit() else 0
        version = answer.headers.get("ETag") or ""
        if not version or version.startswith("W/"):  # a weak one holds for pages that read alike
            version = answer.headers.get("Last-Modified") or ""
        mark.write_text(json.dumps({"version": version, "total": total}), encoding="utf-8")
        with open(part, "ab" if there else "wb") as file:
            for block in blocks(answer):
                file.write(block)
                there += len(block)
                report(there, total)
    if total and there != total:
        raise OSError(f"the connection ended after {there:,} of {total:,} bytes")
    return total


def ranges(headers: Message) -> tuple[int, int]:
    """First byte of a part of a file, and the file's length, by Content-Range; -1 and 0 where it does not say."""
    found = CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    start, total = (found["start"], found["total"]) if found else (None, "*")
    return -1 if start is None else int(start), 0 if total == "*" else int(total)


def blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What a server sends, as it comes.

    Raises:
        OSError: it sends less than `SLOWEST` bytes in `PATIENCE` seconds.
    """
    begin, size = time.monotonic(), 0
    while block := answer.read1(BLOCK):
        yield block
        size += len(block)
        if time.monotonic() - begin > PATIENCE:
            if size < SLOWEST:
                raise OSError(f"the server sent {size:,} bytes in {PATIENCE} seconds")
            begin, size = time.monotonic(), 0


def read_mark(mark: Path) -> dict:
    """The version and the length of what was begun; empty if they are not known."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        return {"version": str(found["version"]), "total": int(found["total"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def check_format(path: Path, name: str) -> None:
    """Refuse a file that may have been cut, where neither a checksum nor a length tells: one without its end.

    Raises:
        UserError: it is cut, or its format does not tell.
    """
    try:
        if name.endswith(".zip"):
            zipfile.ZipFile(path).close()  # its list of members is the end of the file
        elif name.endswith(".tar"):
            with open(path, "rb") as file:
                if file.seek(-1024, os.SEEK_END) % 512 or any(file.read()):
                    raise UserError("its end is missing")
        elif name.endswith("gz"):
            with gzip.open(path) as file:
                while file.read(BLOCK):
                    pass
        elif name.endswith(".json"):
            json.loads(path.read_bytes())
        else:
            raise UserError("neither its length nor a checksum is known")
    except Exception as error:  # damaged archives make their readers raise almost anything
        raise UserError(f"{path} is not whole ({error or type(error).__name__}): get {name} by hand") from error


def check_sum(path: Path, md5: str) -> None:
    """Compare a file with its published checksum.

    Raises:
        UserError: if it has another one.
    """
    if not md5:
        return
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    if found.hexdigest() != md5:
        raise UserError(f"{path} has the md5 {found.hexdigest()}, published is {md5}: it is damaged or another file")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive; its members are looked at before the first one is written.

    Raises:
        UserError: if a member would leave the folder, is a link or a device, if two would be one file on some disks,
            if there is no space for all, or if the archive cannot be read; of the first four nothing is written.
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
        raise UserError(f"{archive} cannot be unpacked: {error or type(error).__name__}") from error


class RefusedArchive(UserError):
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
        UserError: naming it.
    """
    parts = name.replace("\\", "/").split("/")
    if not plain:
        raise RefusedArchive(f"{archive} is refused: its member {name!r} is no plain file or folder")
    if not name or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise RefusedArchive(f"{archive} is refused: its member {name!r} would leave the folder")
    if CONTROL.search(name):
        raise RefusedArchive(f"{archive} is refused: the name of its member {name!r} holds control characters")


def check_together(archive: Path, folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse members that do not go together, or for which there is no space.

    Args:
        archive: the archive.
        folder: where it is to be unpacked.
        sizes: bytes of each member, by name.

    Raises:
        UserError: if names differ in letter case alone, or the members have more bytes than the disk has left.
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
            f"{archive} is refused: it unpacks to {size:,} bytes, and {place} has {free:,} left; free disk space, or "
            "name another folder"
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
