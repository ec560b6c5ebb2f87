"""A console that names of files and classes cannot steer, whatever characters they are made of."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from dassl_clip.commands.errors import printable


class _Console:
    """Stands in for a text stream: control characters and undecodable bytes are written out as escapes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, made printable."""
        self._stream.write(printable(text))
        return len(text)


@contextlib.contextmanager
def safe_stdout() -> Iterator[None]:
    """Within this context, what is printed on stdout is printable."""
    stream = sys.stdout
    sys.stdout = _Console(stream)
    try:
        yield
    finally:
        sys.stdout = stream
