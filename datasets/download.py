"""Fetching and unpacking published archives: resumes what was begun, checks sums, unpacks nothing unsafe."""

import contextlib
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
from collections.abc import Callable, Iterable
from email.message import Message
from pathlib import Path, PurePosixPath

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import is_web_page

BLOCK = 1 << 20
TIMEOUT = 60  # seconds without any answer
PATIENCE, SLOWEST = 60, 60 * 1024  # seconds, and the bytes that must have come in them
CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")
SPECIAL = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz")
FILE_ENDINGS = (*ARCHIVE_ENDINGS, ".mat", ".json")
Report = Callable[[int, int], None]  # bytes there, bytes in all (0: not known)


def is_file(url: str) -> bool:
    """Whether an address is that of a file, not of a page on which a person has to click."""
    return urllib.parse.urlsplit(url).path.endswith(FILE_ENDINGS)


def fetch(url: str, folder: Path, md5: str = "", report: Report = lambda there, total: None) -> Path:
    """Download a file into a folder; one that was begun is resumed, one that is there and whole is kept.

    The bytes go into `<name>.part`, with the server's mark of their version in `<name>.part.json`; the file gets its
    name when it is whole: by its checksum, or by the length that the server gives, or by its own format.

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
    """Write to `part` what is missing of a file, or all of it if the server has another one by now; its length, or 0.

    `mark` holds the server's mark of the version that `part` is of; `checked` says whether a checksum will tell if the
    pieces are of two versions. An OSError says that the file did not come whole, or too slowly.
    """
    there, known = part.stat().st_size if part.is_file() else 0, {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(mark.read_text(encoding="utf-8"))
        known = {"version": str(found["version"]), "total": int(found["total"])}
    answer = None
    if there and (known.get("version") or checked):  # otherwise nothing says that the rest is of the same file
        headers = {"Range": f"bytes={there}-"} | ({"If-Range": known["version"]} if known.get("version") else {})
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
            begin, size = time.monotonic(), 0
            while block := answer.read1(BLOCK):
                file.write(block)
                there += len(block)
                size += len(block)
                report(there, total)
                if time.monotonic() - begin > PATIENCE:
                    if size < SLOWEST:
                        raise OSError(f"the server sent {size:,} bytes in {PATIENCE} seconds")
                    begin, size = time.monotonic(), 0
    if total and there != total:
        raise OSError(f"the connection ended after {there:,} of {total:,} bytes")
    return total


def ranges(headers: Message) -> tuple[int, int]:
    """First byte of a part of a file, and the file's length, by Content-Range; -1 and 0 where it does not say."""
    found = CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    if found is None:
        return -1, 0
    return -1 if found["start"] is None else int(found["start"]), 0 if found["total"] == "*" else int(found["total"])


def check_format(path: Path, name: str) -> None:
    """Refuse a file that may have been cut, where neither a checksum nor a length tells: one without its end."""
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
    """Refuse a file that has another checksum than the published one, if one is known."""
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
            if there is no space for all, or if the archive cannot be read; of none of them anything stays.
    """
    added: list[Path] = []
    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                entries = file.infolist()
                names = [entry.filename for entry in entries]
                plain = [stat.S_IFMT(entry.external_attr >> 16) not in SPECIAL for entry in entries]
                check_members(archive, folder, names, plain, [entry.file_size for entry in entries])
                added = [folder / name for name in names if not (folder / name).exists()]
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                entries = file.getmembers()
                names, plain = [entry.name for entry in entries], [entry.isfile() or entry.isdir() for entry in entries]
                check_members(archive, folder, names, plain, [entry.size for entry in entries])
                added = [folder / name for name in names if not (folder / name).exists()]
                file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    except RefusedArchive:
        raise
    except BaseException as error:  # damaged archives make their readers raise almost anything
        remove(added, folder)  # a part of a data set would be read as all of it
        if not isinstance(error, Exception):
            raise
        raise UserError(f"{archive} cannot be unpacked: {error or type(error).__name__}") from error


def remove(paths: Iterable[Path], folder: Path) -> None:
    """Remove files, and the folders below `folder` that are empty then."""
    for path in paths:
        if not path.is_dir():
            path.unlink(missing_ok=True)
        for place in (path, *path.parents):
            if place == folder or (place.is_dir() and any(place.iterdir())):
                break
            if place.is_dir():
                place.rmdir()


class RefusedArchive(UserError):
    """An archive that is not unpacked; the sentence names the member that is the reason."""


def check_members(archive: Path, folder: Path, names: list[str], plain: list[bool], sizes: list[int]) -> None:
    """Refuse members that are no plain files below the folder, that do not go together, or that are too large."""
    seen: dict[str, str] = {}
    for name, is_plain in zip(names, plain):
        parts = name.replace("\\", "/").split("/")
        if not is_plain:
            raise RefusedArchive(f"{archive} is refused: its member {name!r} is no plain file or folder")
        if not name or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise RefusedArchive(f"{archive} is refused: its member {name!r} would leave the folder")
        if CONTROL.search(name):
            raise RefusedArchive(f"{archive} is refused: the name of its member {name!r} holds control characters")
        other = seen.setdefault(name.rstrip("/").casefold(), name)
        if other.rstrip("/") != name.rstrip("/"):
            raise RefusedArchive(
                f"{archive} is refused: its members {other!r} and {name!r} differ in letter case alone, so that one "
                "would replace the other on some disks"
            )
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    size, free = sum(sizes), shutil.disk_usage(place).free
    if size > free:
        raise RefusedArchive(
            f"{archive} is refused: it unpacks to {size:,} bytes, and {place} has {free:,} left; free disk space, or "
            "name another folder"
        )
