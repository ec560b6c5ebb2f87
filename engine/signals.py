"""What a run does when it is told to end (SIGTERM, as cluster schedulers send it before they kill).

Inside `deferred()` the signal only sets a mark, and the training loop saves after the step it is in and leaves by
`Terminated`; anywhere else `Terminated` is raised at once, as nothing would be lost. A second signal ends at once, but
not one that follows the first within `SAME_CALL` seconds: a scheduler signals all processes of a job, and launchers
pass the signal on to the same processes again. SIGUSR2, which job arrays are sent before their time is up, is taken
likewise.

A scheduler signals the workers of a loader too; `shielded_worker` leaves their end to the process that they work for.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
SAME_CALL = 5.0


class Terminated(BaseException):
    """The run was told to end; as with KeyboardInterrupt, no `except Exception` holds it up.

    Attributes:
        agreed: Whether all processes of the run raise it in the same place.
    """

    def __init__(self, told: str, agreed: bool = False):
        super().__init__(told)
        self.agreed = agreed


class _Mark:
    requested = ""  # the signal's name
    when = 0.0
    deferring = False
    shielded = 0  # the worker process that is shielded


def requested() -> bool:
    """Whether this process was told to end."""
    return bool(_Mark.requested)


def leave_if_told() -> None:
    """Stop here if this process was told to end: for loops whose work is done again, or is on the disk.

    Raises:
        Terminated: It was.
    """
    if _Mark.requested:
        raise Terminated(f"told to end by {_Mark.requested}")


def _on_signal(number: int, frame: object) -> None:
    now, first = time.monotonic(), not _Mark.requested
    if first:
        _Mark.requested, _Mark.when = signal.Signals(number).name, now
    if now - _Mark.when > SAME_CALL or (first and not _Mark.deferring):
        leave_if_told()


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals in this way within the block; outside of the main thread the block runs as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Mark.requested = ""


@contextmanager
def deferred() -> Iterator[None]:
    """Only mark a signal within the block, which asks `requested()` where it can stop; it is raised at the end."""
    _Mark.deferring = True
    try:
        yield
    except RuntimeError as error:  # a scheduler signals what the run has started too, and torch tells of its end
        if _Mark.requested:
            raise Terminated(f"told to end by {_Mark.requested} ({error})") from error
        raise
    finally:
        _Mark.deferring = False
    leave_if_told()


def shielded_worker() -> None:
    """Let only the parent end this process by a signal of `SIGNALS`; called once in a loader's worker.

    Systems without `sigwaitinfo` tell no sender: there the signals end a worker, as ever.
    """
    if _Mark.shielded == os.getpid() or not hasattr(signal, "sigwaitinfo"):
        return
    _Mark.shielded, parent = os.getpid(), os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while True:
            with contextlib.suppress(InterruptedError):
                if signal.sigwaitinfo(SIGNALS).si_pid == parent:
                    os._exit(0)  # as torch's own handler in a worker does

    threading.Thread(target=wait, daemon=True).start()
