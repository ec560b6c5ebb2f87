"""Files that are either complete or absent: written beside the target, flushed to disk, then renamed over it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file beside `path`; it takes the place of `path` when the block ends without an error.

    What is no regular file, such as `/dev/null` or a pipe, is opened itself, and stays what it is.

    Args:
        path: The file to make or replace; its folder must exist.
        mode: "wb" or "w" (UTF-8).

    Raises:
        OSError: No room, no right to write, ...; it names `path`, which is as it was.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        return
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # names the file that was asked for; a full disk names none
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)
