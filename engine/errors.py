"""What a command prints: one line for a user's mistake, a traceback for a bug, and printable text only.

Its standard streams may have a reader that leaves, and a disk that is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import printable

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130
PIPE_EXIT = 141  # 128 + SIGPIPE, as of any program whose output nobody reads any more
RESUMES = "interrupted: the same command resumes"
TOOLBOX = "dassl"
_TOOLBOX_ERRORS = (ValueError, KeyError, AssertionError, FloatingPointError, ImportError)
_SPACE, _ELSEWHERE = "free disk space, or name another folder", "name a folder that may be written to"
_NO_FOLDER = "a file stands where a folder is needed; name another path"
_DISK = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "give shorter names",
    errno.ELOOP: "a link leads back to itself",
    errno.ENOENT: "it does not exist, cannot be made there, or was removed meanwhile; check the path",
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
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
    refused = isinstance(error, OSError) and (error.errno or 0) not in _OF_PROGRAMS  # no space, no permission, ...
    if refused or isinstance(error, (UserError, MemoryError)) or getattr(error, "from_user", False) or _advice(error):
        return True
    # The toolbox, ours or upstream, has no class for users' errors: what it raises itself is one.
    if not isinstance(error, _TOOLBOX_ERRORS) or not str(error).strip() or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] == TOOLBOX


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


_BAR = re.compile(r"(?:[\r\n]|\x1b\[A)*")  # how tqdm begins what it writes


class Console:
    """Stands in for a text stream: control characters and undecodable bytes are written out as escapes.

    Args:
        stream: The stream; also a copy of the console in a file, such as Dassl's `Logger`.
        name: What an error of the system names.
        spoken: True for stderr: what cannot be written there is dropped, and bars may move the cursor.
    """

    def __init__(self, stream: Any, name: str, spoken: bool = False) -> None:
        self._stream, self._name, self._spoken, self._failed = stream, name, spoken, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, made printable."""
        bar = _BAR.match(text) if self._spoken else None
        start = bar.end() if bar else 0
        shown = text[:start] + printable(text[start:])
        with self._refusals():
            try:
                self._stream.write(shown)
            except UnicodeEncodeError as error:  # a terminal that is not in UTF-8
                self._stream.write(shown.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._refusals():
            self._stream.flush()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Within this context a reader that has left ends the process quietly, and any other refusal has a name.

        A stream is said once to have failed; what is written there afterwards goes nowhere.
        """
        try:
            yield
        except OSError as error:
            failed, self._failed = self._failed, True
            _drop(self._stream)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(PIPE_EXIT) from None
            if not failed and not self._spoken:
                raise OSError(error.errno, error.strerror, error.filename or self._name) from error


def _drop(stream: Any) -> None:
    """Let what a stream (of a `Logger`: its file) still holds go nowhere: Python would fail on it again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), (getattr(stream, "file", None) or stream).fileno())


@contextlib.contextmanager
def safe_console() -> Iterator[None]:
    """Within this context stdout and stderr are `Console`s; a stream that was closed leads nowhere."""
    for number in range(3):  # a file that is opened must not get the number of a standard stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    streams = [open(os.devnull, "w") if stream is None else stream for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = Console(streams[0], "standard output"), Console(streams[1], "standard error", spoken=True)
    try:
        yield
        sys.stdout.flush()
    except OSError as error:  # of the last flush: the commands report their own
        print(f"error: {sentence(error)}", file=sys.stderr)
        raise SystemExit(USAGE_EXIT) from None
    finally:
        sys.stdout, sys.stderr = before
