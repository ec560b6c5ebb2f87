"""What a person did wrong is told in one sentence; what the program did wrong keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import printable

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130
RESUMES = "interrupted: the same command resumes"
TOOLBOX = "dassl"
_TOOLBOX_ERRORS = (ValueError, KeyError, AssertionError, FloatingPointError, ImportError)
_ROOM, _ELSEWHERE = "make room, or name another folder", "name a folder that may be written to"
_DISK = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "give shorter names",
    errno.ELOOP: "a link leads back to itself",
    errno.ENOENT: "it was moved or removed meanwhile, or never made",
    errno.ESTALE: "the network file system was mounted again; start the command again",
    errno.EIO: "the device does not answer",
    errno.EMFILE: "allow more open files (ulimit -n), or set fewer DATALOADER.NUM_WORKERS",
    errno.ENOMEM: "free memory, or start fewer runs at a time (--jobs)",
}
_OF_PROGRAMS = (errno.EBADF, errno.EFAULT, errno.ENOTSOCK)  # what only a program can get wrong
# What torch says where the machine is too small -> what to do.
_MACHINE = {
    re.compile(r"CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|MPS backend out of memory"): (
        "set a smaller DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, or start fewer runs at a time "
        "(--jobs)"
    ),
    re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)|unable to (open|mmap|write to) .*shared"): (
        "set fewer DATALOADER.NUM_WORKERS (0: none), or give the machine more memory, in a container also shared "
        "memory (--shm-size)"
    ),
}
# An error of a loader's worker is raised again with the traceback as its text.
_OF_WORKER = re.compile(
    r"Caught \w+ in (?:DataLoader worker|pin memory thread).*?\n\S*(?:Error|Image|Exception): ", re.S
)


def is_user_error(error: BaseException) -> bool:
    """Whether an exception tells a person what to change: a `UserError`, the system's refusal, or the toolbox's own.

    An error that Python, torch or another library raised inside our code is a bug of ours and keeps its traceback.
    """
    if isinstance(error, (UserError, MemoryError)) or getattr(error, "from_user", False):
        return True
    if _is_of_the_system(error) or _advice(error):
        return True
    # The toolbox, ours or upstream, has no class for users' errors: what it raises itself is one.
    if not isinstance(error, _TOOLBOX_ERRORS) or not str(error).strip() or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] == TOOLBOX


def _is_of_the_system(error: BaseException) -> bool:
    """Whether it is the system that refuses: no room, no right, a name that is too long, a file that has gone."""
    return isinstance(error, OSError) and (error.errno or 0) not in _OF_PROGRAMS


def _advice(error: BaseException) -> str:
    """What to do about an error of torch that says that the machine is too small, or an empty text."""
    found = (advice for said, advice in _MACHINE.items() if isinstance(error, RuntimeError) and said.search(str(error)))
    return next(found, "")


def sentence(error: BaseException) -> str:
    """The text of an error on one line."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        name = "" if error.filename is None or isinstance(error.filename, int) else f"{os.fsdecode(error.filename)}: "
        advice = _DISK.get(error.errno, "")
        return printable(f"{name}{error.strerror}{advice and f'; {advice}'}")
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = _OF_WORKER.sub("", text, count=1)
    advice = _advice(error)
    if advice:
        text = f"{text.split('. ')[0].splitlines()[0]}; {advice}"
    if isinstance(error, MemoryError):
        text = f"not enough memory{text and f': {text}'}"
    return printable(" ".join(text.split()) or type(error).__name__)


def wants_traceback(flag: bool = False) -> bool:
    """Whether tracebacks were asked for, by `--debug` or the environment variable DEBUG."""
    return flag or os.environ.get("DEBUG", "0").lower() not in ("", "0", "false", "no")


def report(error: BaseException, debug: bool = False) -> int:
    """Print an error to stderr and return the exit code: 2 for a person's mistake, 1 for a bug, with its traceback."""
    if is_user_error(error) and not wants_traceback(debug):
        print(f"error: {sentence(error)}", file=sys.stderr)
        return USAGE_EXIT
    traceback.print_exception(error)
    return USAGE_EXIT if is_user_error(error) else 1


def guarded(work: Callable[[list[str]], int], argv: Sequence[str] | None, interrupted: str = "interrupted") -> int:
    """Do the work of a command and return its exit code: the frame of every `main`.

    Args:
        work: takes the arguments, returns the exit code.
        argv: the arguments; None: those that the program was started with.
        interrupted: what Ctrl-C leaves behind, as one sentence.

    Returns:
        The work's own exit code; 130 after Ctrl-C; 2 with one sentence for a user's error; 1 with a traceback for a
        bug. With `--debug` among the arguments every error has its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return work(words)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED_EXIT
    except Exception as error:
        return report(error, "--debug" in words)
