"""The standard streams of a command: printable text only, a reader that may leave, and a disk that may be full."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from dassl_clip.results.escaping import printable

from .errors import USAGE_EXIT, sentence

PIPE_EXIT = 141  # 128 + SIGPIPE, as of any program whose output nobody reads any more
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
        start = _BAR.match(text).end() if self._spoken else 0  # type: ignore[union-attr]  # matches any text
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
