"""How long a run has trained and tested, and how long a loop has left."""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta


class Clock:
    """Seconds by what they were spent on; what is nested counts for the inner alone.

    Attributes:
        seconds: Those that are finished, also of starts before a resume.
    """

    def __init__(self) -> None:
        self.seconds = {"train": 0.0, "test": 0.0}
        self._began = self._since = time.monotonic()
        self._current = ""

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Within this context the time is spent on `what`."""
        outer = self._turn_to(what)
        try:
            yield
        finally:
            self._turn_to(outer)

    def _turn_to(self, what: str) -> str:
        now, before = time.monotonic(), self._current
        if before:
            self.seconds[before] += now - self._since
        self._current, self._since = what, now
        return before

    def so_far(self) -> dict[str, float]:
        """The seconds until now."""
        self._turn_to(self._current)
        return dict(self.seconds)

    def resume(self, seconds: dict[str, float]) -> None:
        """Count the seconds of an earlier start, too."""
        self.seconds |= seconds
        self._began -= sum(self.seconds.values())

    def total(self) -> float:
        """Seconds since the run began, with those before a resume."""
        return time.monotonic() - self._began


class Pace:
    """How long the rest of a loop will take, from the steps since it began here.

    Args:
        done: Steps that an earlier start has done.
        total: Most steps in all.
    """

    SILENCE = 5.0  # seconds after which a line is due

    def __init__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._began = self._said = time.monotonic()

    def due(self) -> bool:
        """Whether nothing was said for a while."""
        return time.monotonic() - self._said >= self.SILENCE

    def line(self, step: int) -> str:
        """`step 480 of at most 8000, eta 0:00:12`, which counts as said."""
        self._said = now = time.monotonic()
        left = (now - self._began) / max(step - self.done, 1) * (self.total - step)
        return f"step {step} of at most {self.total}, eta {timedelta(seconds=round(left))}"
