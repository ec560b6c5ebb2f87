"""Atomic writes (at any moment the old file or the whole new one is there), kinds of files, and the cache folder."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import platformdirs

from .errors import UserError

CACHE_VARIABLE, CACHE_OFF = "DASSL_CLIP_CACHE", "off"
_SUFFIX = ".tmp"


def cache_dir() -> Path | None:
    """The folder above all that is cached, or None if nothing shall be.

    `$DASSL_CLIP_CACHE`, else the system's folder for caches: on Linux `$XDG_CACHE_HOME/dassl-clip`, else
    `~/.cache/dassl-clip`. `DASSL_CLIP_CACHE=off` caches nothing.
    """
    named = os.environ.get(CACHE_VARIABLE, "")
    if named.lower() == CACHE_OFF:
        return None
    return Path(named or platformdirs.user_cache_dir("dassl-clip", appauthor=False)).expanduser()


_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(path: str | os.PathLike[str]) -> str:
    """What lies at a path, links followed, for a message: "a file", "a folder", "a named pipe", ..., or "nothing"."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "a link to a file that does not exist" if os.path.islink(path) else "nothing"
    return next((name for fits, name in _KINDS if fits(mode)), "something that is no file")


def no_file(path: str | os.PathLike[str]) -> str:
    """Why a path is no file, as part of a sentence: "there is no file X", or "X is a named pipe, not a file"."""
    kind, name = kind_of(path), os.fsdecode(path)
    if kind == "nothing":
        return f"there is no file {name}"
    return f"{name} is {kind}" if kind.startswith("a link") else f"{name} is {kind}, not a file"


def is_web_page(start: bytes) -> bool:
    """Whether a file begins as a web page does, such as the notice that a server sends in place of a file."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse to open what is there and is no regular file: reading a pipe or a device may never end.

    Raises:
        UserError: naming it, and what it is.
    """
    if kind_of(path) not in ("a file", "nothing"):
        raise UserError(no_file(path))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write(file)` fill a temporary file beside `path`, sync it and put it in place in one step.

    What is no regular file, such as `/dev/stdout` or a pipe, is written into, and stays what it is.

    Args:
        path: The file; its folder is made if it is absent.
        write: Called with the open binary file.

    Raises:
        OSError: No space, no permission, ...; the old file is as it was, and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_SUFFIX}")
    stays = kind_of(path) in ("a device", "a named pipe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # closed in reverse order, or it would flush later
        with open(path if stays else temporary, "wb") as file, _Output(file) as output:
            try:
                write(cast(BinaryIO, output))
            except Exception as error:
                raise output.trouble or error from None
            output.flush()
            if not stays:
                os.fsync(file.fileno())
        if not stays:
            os.replace(temporary, path)
    except OSError as error:  # names the file that was asked for; a full disk names none
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class _Output(io.RawIOBase):
    """A file to write to that remembers why it could not be written to: torch and numpy do not hand that on."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.trouble: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.trouble = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.trouble = error
            raise


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all."""
    write_bytes_atomically(path, text.encode("utf-8"))


def clear_temporaries(folder: Path) -> list[Path]:
    """Remove what writers that were killed have left at or below a folder; returns the removed files.

    Files of other machines, and of processes that are still there, stay.
    """
    removed = []
    for path in folder.rglob(f".*{_SUFFIX}"):
        rest, _, number = path.name.removesuffix(_SUFFIX).rpartition(".")
        if rest.endswith(f".{socket.gethostname()}") and number.isdigit():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
                removed.append(path)
            except OSError:  # it is there, and another user's
                continue
    return removed
