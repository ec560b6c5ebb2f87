"""A copy of the console in a file."""

from __future__ import annotations

import os
import sys
import time

from .on_demand import import_on_demand
from .tools import mkdir_if_missing

__getattr__ = import_on_demand(__name__, osp="os.path")


class Logger:
    """A stand-in for stdout that also writes every line to a file. Other attributes are those of the console.

    Args:
        fpath: The log file; None writes to the console alone.
    """

    def __init__(self, fpath: str | None = None) -> None:
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            # Names of files need not be text: bytes that are none are written out.
            self.file = open(fpath, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def __getattr__(self, name: str):
        if name in {"console", "file"}:
            raise AttributeError(name)
        return getattr(self.console, name)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("file") is not None:
            self.close()

    def write(self, message: str) -> int:
        """Writes to the console and the file."""
        self.console.write(message)
        if self.file is not None:
            self.file.write(message)
        return len(message)

    def flush(self) -> None:
        """Flushes the console, and the file down to the disk."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Closes the file; the console stays open and further lines go to it alone."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | None = None) -> None:
    """Copies stdout, from now on, into a log file. A log that an earlier call opened in this process is closed.

    Args:
        output: A file (.txt, .log) or a folder, which gets `log.txt`; None does nothing. An existing file is kept and
            the new one carries the time in its name.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(fpath):
        fpath = _free_name(fpath + time.strftime("-%Y-%m-%d-%H-%M-%S"))
    if isinstance(sys.stdout, Logger):
        previous, sys.stdout = sys.stdout, sys.stdout.console
        previous.close()
    sys.stdout = Logger(fpath)


def _free_name(fpath: str) -> str:
    """`fpath`, with a number behind it if two runs start within one second."""
    name, number = fpath, 1
    while os.path.exists(name):
        number += 1
        name = f"{fpath}-{number}"
    return name
