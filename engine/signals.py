"""What a run does on SIGTERM, as cluster schedulers send it before they kill: a stop is requested.

Inside `deferred()` the signal only sets `stop.requested`: the training loop saves after the step it is in, and leaves
by `Terminated`. Anywhere else `Terminated` is raised at once, as nothing would be lost. A second signal ends at once,
but not one that follows the first within `SAME_CALL` seconds: a scheduler signals all processes of a job, and launchers
pass the signal on to the same processes again. SIGUSR2, which job arrays are sent before their time is up, is taken
likewise.

A scheduler signals the workers of a loader too; `shield_worker` leaves their end to the process that they work for.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
SAME_CALL = 5.0


class Terminated(BaseException):
    """A stop was requested; as with KeyboardInterrupt, no `except Exception` holds it up.

    Attributes:
        agreed: Whether all processes of the run raise it in the same place.
    """

    def __init__(self, message: str, agreed: bool = False):
        super().__init__(message)
        self.agreed = agreed


@dataclass
class _Stop:
    requested: bool = False
    signal: str = ""  # its name
    when: float = 0.0
    deferring: bool = False
    shielded: int = 0  # the worker process that is shielded


stop = _Stop()  # of this process


def raise_if_stopped() -> None:
    """End here if a stop was requested: for loops whose work is done again, or is on the disk.

    Raises:
        Terminated: It was.
    """
    if stop.requested:
        raise Terminated(f"stopped by {stop.signal}")


def _on_signal(number: int, frame: object) -> None:
    now, first = time.monotonic(), not stop.requested
    if first:
        stop.requested, stop.signal, stop.when = True, signal.Signals(number).name, now
    if now - stop.when > SAME_CALL or (first and not stop.deferring):
        raise_if_stopped()


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
        stop.requested = False


@contextmanager
def deferred() -> Iterator[None]:
    """Only note a signal within the block, which looks at `stop.requested` where it can stop, and raise at the end."""
    stop.deferring = True
    try:
        yield
    except RuntimeError as error:  # a scheduler signals what the run has started too, and torch tells of its end
        if stop.requested:
            raise Terminated(f"stopped by {stop.signal} ({error})") from error
        raise
    finally:
        stop.deferring = False
    raise_if_stopped()


def shield_worker() -> None:
    """Let only the parent end this process by a signal of `SIGNALS`; called once in a loader's worker.

    Systems without `sigwaitinfo` tell no sender: there the signals end a worker, as ever.
    """
    if stop.shielded == os.getpid() or not hasattr(signal, "sigwaitinfo"):
        return
    stop.shielded, parent = os.getpid(), os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while True:
            with contextlib.suppress(InterruptedError):
                if signal.sigwaitinfo(SIGNALS).si_pid == parent:
                    os._exit(0)  # as torch's own handler in a worker does

    threading.Thread(target=wait, daemon=True).start()
