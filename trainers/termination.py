"""What a run does when it is told to end (SIGTERM, as cluster schedulers send it before they kill).

Inside `deferred()` the signal only sets a mark, and the training loop saves after the step it is in and leaves by
`Terminated`; anywhere else `Terminated` is raised at once, as nothing would be lost. A second signal always ends at
once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(BaseException):
    """The run was told to end; as with KeyboardInterrupt, no `except Exception` holds it up."""


class _Mark:
    requested = False
    deferring = False


def requested() -> bool:
    """Whether this process was told to end."""
    return _Mark.requested


def _on_signal(number: int, frame: object) -> None:
    again, _Mark.requested = _Mark.requested, True
    if again or not _Mark.deferring:
        raise Terminated(f"told to end by {signal.Signals(number).name}")


@contextmanager
def handled() -> Iterator[None]:
    """Handle SIGTERM in this way within the block; outside of the main thread the block runs as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _Mark.requested = False


@contextmanager
def deferred() -> Iterator[None]:
    """Only mark a signal within the block, which asks `requested()` where it can stop; it is raised at the end."""
    _Mark.deferring = True
    try:
        yield
    except RuntimeError as error:  # a scheduler signals the loader's workers too, and torch tells of their end
        if _Mark.requested:
            raise Terminated(f"told to end by SIGTERM ({error})") from error
        raise
    finally:
        _Mark.deferring = False
    if _Mark.requested:
        raise Terminated("told to end by SIGTERM")
