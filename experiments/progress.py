"""What a person sees while many runs are under way, and how long they will take.

In a terminal: a bar of all runs, and below it one line for each that is running. Anywhere else: plain lines, one when a
run begins or ends, and one about all that are running where nothing was printed for `QUIET` seconds.

The time that is left is estimated for each run by its own kind (method, task, data set): what a running one says itself
(`eta`), or else what finished ones of its kind took. A kind of which nothing is known is named, and the rest is then
a lower bound: the fast runs end first, and say nothing of the slow ones.
"""

import heapq
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from tqdm import tqdm

QUIET = 9.0  # seconds without a line after which one is printed
_EPOCH = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")
_STEP = re.compile(r"\bstep (\d+) of at most (\d+)\b")
_ETA = re.compile(r"\beta (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")
_WAITS = re.compile(r"^waiting: (.*)")
LONGEST = 40  # of a method's name
NAMED = 3  # kinds of which nothing is known that are named

Kind = tuple[str, ...]  # what runs that take as long have in common, the method first


def fraction_done(line: str) -> float | None:
    """The share of training that a line of a run's log reports, between 0 and 1."""
    if match := _EPOCH.search(line):
        epoch, epochs, batch, batches = map(int, match.groups())
        return (epoch - 1 + batch / max(batches, 1)) / max(epochs, 1)
    if match := _STEP.search(line):
        return int(match[1]) / max(int(match[2]), 1)
    return None


def seconds_left(line: str) -> float | None:
    """The seconds that a line of a run's log says are left of its training."""
    if match := _ETA.search(line):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return None


def shown(seconds: float) -> str:
    """`0:12:05`."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def named(kind: Kind) -> str:
    """The method of a kind, cut where its configuration makes it long."""
    return kind[0] if len(kind[0]) <= LONGEST else f"{kind[0][: LONGEST - 3]}..."


@dataclass
class Running:
    """A run that is under way, as its log tells it; `label` is what tells it from others of its method."""

    label: str
    kind: Kind
    started: float
    share: float | None = None
    end: float | None = None  # when it will be done, by its own words
    note: str = ""

    def read(self, line: str, now: float) -> None:
        """Take what a line of its log says."""
        share, left = fraction_done(line), seconds_left(line)
        self.share = self.share if share is None else share
        self.end = self.end if left is None else now + left
        waits = _WAITS.search(line)
        self.note = waits[1] if waits else ""

    @property
    def trained(self) -> bool:
        """Whether only its test is left, of which it says nothing."""
        return self.share is not None and self.share >= 1

    def text(self, now: float) -> str:
        """`METHOD (icons) lodo line seed 1 43%, eta 0:03:10`."""
        parts = [f"{named(self.kind)} {self.label}" + ("" if self.share is None else f" {self.share:.0%}")]
        parts += [f"waits: {self.note}"] if self.note else []
        eta = "trained, testing" if self.trained else "" if self.end is None else f"eta {shown(self.end - now)}"
        parts += [eta or f"{shown(now - self.started)} so far"]
        return ", ".join(parts)


@dataclass
class Outlook:
    """How long runs took that are finished, by their kinds; and the kinds of runs that come later."""

    took: dict[Kind, list[float]] = field(default_factory=dict)
    later: Sequence[Kind] = ()

    def note(self, kind: Kind, seconds: float) -> None:
        """Note that a run of a kind took so long."""
        self.took.setdefault(kind, []).append(seconds)

    def typical(self, kind: Kind, running: Sequence[Running] = (), now: float = 0.0) -> float | None:
        """Seconds of a run of a kind: of finished ones, else by the words of running ones, else of its method."""
        told = [run.end - run.started for run in running if run.kind == kind and run.end is not None]
        of_method = [value for other, values in self.took.items() if other[0] == kind[0] for value in values]
        for found in (self.took.get(kind, []), told, of_method):
            if found:
                return statistics.fmean(found)
        return None

    def estimate(
        self, running: Sequence[Running], waiting: Sequence[Kind], jobs: int, now: float
    ) -> tuple[float, list[str]]:
        """Seconds until all runs are done, `jobs` at a time, and the methods of which nothing is known."""
        unknown: dict[str, None] = {}
        busy = []  # when each place is free again
        for run in running:
            usual = self.typical(run.kind, running, now)
            end = run.end
            if end is None or run.trained:
                end = None
                if usual is not None and (run.kind in self.took or not run.trained):
                    end = run.started + usual
            if end is None:
                unknown[named(run.kind)] = None
            busy.append(max(0.0, (end or now) - now))
        busy += [0.0] * (jobs - len(busy))
        heapq.heapify(busy)
        last = max(busy)
        for kind in (*waiting, *self.later):
            usual = self.typical(kind, running, now)
            if usual is None:
                unknown[named(kind)] = None
            end = heapq.heappop(busy) + (usual or 0.0)
            last = max(last, end)
            heapq.heappush(busy, end)
        return last, list(unknown)


class Reporter:
    """Progress of runs on stdout; the bars, if stdout is a terminal, go to stderr as tqdm's do.

    Args:
        waiting: the kinds of all runs, in their order.
        jobs: how many are under way at a time.
        outlook: what is known beforehand, and what comes later.
    """

    def __init__(self, waiting: Sequence[Kind], jobs: int, outlook: Outlook | None = None) -> None:
        self.waiting, self.jobs, self.outlook = list(waiting), jobs, outlook or Outlook()
        self.total, self.finished = len(waiting), 0
        self.started = self.spoken = time.monotonic()
        self.running: dict[str, Running] = {}
        self._bars: list[tqdm] = []
        if sys.stdout.isatty() and sys.stderr.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}{postfix}]"
            self._bars = [tqdm(total=self.total, desc="runs", bar_format=form, dynamic_ncols=True, leave=False)]
            line = {"bar_format": "{desc}", "dynamic_ncols": True, "leave": False}
            self._bars += [tqdm(total=1, position=1 + place, **line) for place in range(jobs)]

    def say(self, text: str) -> None:
        """Print one or more lines, above the bars."""
        self.spoken = time.monotonic()
        if self._bars:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def start(self, name: str, label: str, kind: Kind) -> None:
        """Note that the next run is under way: `name`, of a kind, shown with `label`."""
        self.waiting.pop(0)
        self.running[name] = Running(label, kind, time.monotonic())

    def read(self, name: str, line: str) -> None:
        """Take a line of a run's log."""
        self.running[name].read(line, time.monotonic())

    def finish(self, name: str, text: str, ok: bool = True) -> None:
        """Note the end of a run in one line, with the time that the others will take."""
        run, now = self.running.pop(name), time.monotonic()
        self.finished += 1
        if ok:
            self.outlook.note(run.kind, now - run.started)
        left = bool(self.waiting or self.running or self.outlook.later)
        eta = f"; {self.left(now)}" if left else f"; {shown(now - self.started)} in all"
        width = len(str(self.total))
        self.say(f"[{self.finished:>{width}}/{self.total}] {text}{eta}")
        self._draw(now)

    def left(self, now: float) -> str:
        """`about 0:20:00 left`, or what is not known of it."""
        seconds, unknown = self.outlook.estimate(list(self.running.values()), self.waiting, self.jobs, now)
        if not unknown:
            return f"about {shown(seconds)} left"
        names = ", ".join(unknown[:NAMED]) + (f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else "")
        least = f"at least {shown(seconds)} left, " if seconds >= 1 else "time left "
        return f"{least}not known yet for {names}"

    def tick(self) -> None:
        """Redraw the bars; without them, print a line where there was none for a while."""
        now = time.monotonic()
        if self._bars:
            self._draw(now)
        elif now - self.spoken >= QUIET and self.running:
            texts = "; ".join(run.text(now) for run in self.running.values())
            self.say(f"{len(self.running)} running: {texts}; {self.finished} of {self.total} done; {self.left(now)}")

    def close(self) -> None:
        """Take the bars away."""
        for bar in reversed(self._bars):
            bar.close()

    def _draw(self, now: float) -> None:
        if not self._bars:
            return
        whole, *lines = self._bars
        whole.set_postfix_str(self.left(now), refresh=False)
        whole.n = self.finished + sum(run.share or 0.0 for run in self.running.values())
        whole.refresh()
        texts = [run.text(now) for run in self.running.values()]
        for bar, text in zip(lines, [*texts, *[""] * len(lines)]):
            bar.set_description_str(text)
