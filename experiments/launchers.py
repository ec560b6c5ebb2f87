"""Runs of a plan side by side on this machine, each in a process forked from one that has everything imported.

A run's output goes to its log.txt, and through a pipe to this process, which reads the progress from it and keeps the
last lines for the case of a failure. Runs end with this process: they may save first, and when it is killed they are.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from dassl_clip.engine.errors import USAGE_EXIT, report
from dassl_clip.results import environment, records
from dassl_clip.results.errors import UserError

from . import locks, state
from .plan import Run
from .progress import Kind, Outlook, Reporter

TAIL_LINES = 15
_MEMORY_PER_RUN = 2 * 2**30
_SECONDS_TO_SAVE = 20.0
_TICK = 1.0  # seconds between two looks at what is shown


@dataclass
class Outcome:
    """How one run ended: `code` 0 is good; `tail` holds its last lines otherwise."""

    run: Run
    code: int
    seconds: float = 0.0
    tail: list[str] = field(default_factory=list)


Launcher = Callable[[Sequence[Run], Outlook], list[Outcome]]  # makes some runs, and returns the failures


def kind_of(run: Run) -> Kind:
    """What runs that take about as long have in common."""
    method = f"{run.row.label}, evaluated" if run.evaluates else run.row.label
    return method, run.task, run.config.DATASET.NAME, str(run.config.DATASET.NUM_SHOTS)


def run_in_order(runs: Sequence[Run], todo: Sequence[Run], launch: Launcher) -> list[Outcome]:
    """Make the runs that stand alone, then what another task has made by now, then what needs a run of the first.

    Finished runs that were made of a run which has learned something else now are made again.

    Returns:
        All failures.
    """
    failed: list[Outcome] = []
    outlook, ahead = Outlook(), {run.folder: run for run in todo}
    for run in runs:  # an earlier start has made some
        if run.folder not in ahead and (record := records.read_record(run.folder)) is not None:
            outlook.note(kind_of(run), record["seconds"]["total"])

    def make(some: Sequence[Run]) -> None:
        for run in some:
            ahead.pop(run.folder, None)
        outlook.later = [kind_of(run) for run in ahead.values()]
        ready = []
        for run in some:
            if run.needs is None or records.is_complete(run.needs):
                ready.append(run)
            else:
                print(f"left out: {run.name}: it needs the run in {run.needs}, which is not finished", file=sys.stderr)
        failed.extend(launch(ready, outlook) if ready else [])

    first, twins = state.part_twins(state.take_over([run for run in todo if run.needs is None]))
    make(first)
    make(state.take_over(twins))
    make([run for run in todo if run.needs is not None])
    folders, outdated = {run.folder for run in todo}, []
    for run in runs:
        if run.needs in folders and run.folder not in folders and (now := state.state_of(run)).name == state.REDO:
            print(f"{now.name}: {run.name}: {now.reason}")
            outdated.append(run)
    make(outdated)
    return failed


# ------------------------------------------------------------------------------------------------------- this machine


def default_jobs(runs: int, gpus: int, cores: int, memory: int) -> int:
    """How many runs go side by side: one with GPUs, otherwise one per core as far as runs and free bytes go."""
    return 1 if gpus else max(1, min(cores, runs, memory // _MEMORY_PER_RUN))


def free_memory() -> int:
    """Bytes of memory that can be had, or a large number where the system does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return 2**62


def count_gpus() -> int:
    """Number of usable GPUs."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def run_locally(
    runs: Sequence[Run], jobs: int | None, gpus: int | None = None, outlook: Outlook | None = None
) -> list[Outcome]:
    """Make runs in processes of this machine, and continue after failures; returns the failures.

    Args:
        runs: what to run, in this order.
        jobs: how many at a time, among which the cores are divided; None for as many as the machine suggests.
        gpus: number of GPUs that they take in turn; None for those that are there.
        outlook: how long such runs took, and what comes later.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1 run at a time")
    if gpus is None:
        gpus = count_gpus() if any(run.config.USE_CUDA for run in runs) else 0
    jobs = min(jobs or default_jobs(len(runs), gpus, environment.usable_cores(), free_memory()), len(runs))
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{count}, {jobs} at a time; each writes {state.LOG_NAME} in its folder", flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dassl_clip.experiments.preload"])
    waiting, slots = deque(runs), list(range(jobs))
    children: list[_Child] = []
    failed: list[Outcome] = []
    reporter = Reporter([kind_of(run) for run in runs], jobs, outlook)
    try:
        with ends_on_sigterm():
            while waiting or children:
                while waiting and slots:
                    reporter.say(f"$ {waiting[0].command}")
                    run, slot = waiting.popleft(), slots.pop(0)
                    reading, writing = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(run, writing, slot, jobs, gpus), name=run.name)
                    process.start()
                    writing.close()
                    os.set_blocking(reading.fileno(), False)
                    children.append(_Child(run, process, reading, slot, time.monotonic()))
                    reporter.start(run.name, f"{run.task} {run.target} seed {run.seed}", kind_of(run))
                ready = wait([end for child in children for end in (child.process.sentinel, child.pipe)], _TICK)
                reporter.tick()
                for child in children:
                    if child.pipe in ready:
                        child.read(reporter)
                for child in [child for child in children if child.process.sentinel in ready]:
                    children.remove(child)
                    slots = sorted([*slots, child.slot])
                    outcome = child.outcome(reporter)
                    told = describe(outcome)
                    reporter.finish(child.run.name, told, ok=outcome.code == 0)
                    failed += [outcome] if outcome.code else []
    finally:  # runs that are left may save first; one that does not end in time is killed, with all that it started
        for child in children:
            child.process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_SAVE
        for child in children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive() and child.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                child.process.join(2.0)
        reporter.close()
    for outcome in failed:
        if outcome.code != locks.BUSY_EXIT:
            state.note_failure(outcome.run.folder, outcome.code, outcome.tail)
    return failed


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Within this context SIGTERM unwinds the program, then ends it with the signal's own exit code."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Child:
    """A run that is being made, as this process sees it."""

    run: Run
    process: BaseProcess
    pipe: Connection
    slot: int
    started: float
    partial: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def read(self, reporter: Reporter) -> bool:
        """Take what the run has printed; False when there is nothing more for now."""
        try:
            data = os.read(self.pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        *lines, self.partial = (self.partial + data.decode("utf-8", "replace")).split("\n")
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]  # of a bar only what stays
        self.partial = self.partial.rpartition("\r")[2] or self.partial
        for line in filter(str.strip, lines):
            reporter.read(self.run.name, line)
            self.tail.append(line.rstrip())
        return bool(data)

    def outcome(self, reporter: Reporter) -> Outcome:
        """How the run ended, once its process has."""
        self.process.join()
        while self.read(reporter):
            pass
        self.pipe.close()
        code = self.process.exitcode or 0  # an ended process has one
        tail = [*self.tail, *([self.partial] if self.partial.strip() else [])]
        if code == USAGE_EXIT:
            tail = [line for line in tail if line.startswith("error: ")] or tail
        if code < 0:
            known = -code in set(signal.Signals)
            name = signal.Signals(-code).name if known else f"signal {-code}"
            tail.append(f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else ""))
            with contextlib.suppress(OSError), open(self.run.folder / state.LOG_NAME, "a", encoding="utf-8") as log:
                log.write(tail[-1] + "\n")
        return Outcome(self.run, code, time.monotonic() - self.started, tail if code else [])


def _work(run: Run, output: Connection, slot: int, jobs: int, gpus: int) -> None:
    """What a forked process does: one run, with its part of the machine, its output into a pipe."""
    import torch

    from .run import run_planned

    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which lets the runs save

    def die_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            wait([parent.sentinel])
            os.killpg(0, signal.SIGKILL)  # with all that this run has started

    threading.Thread(target=die_with_parent, daemon=True).start()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(output.fileno(), number)
        setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
    output.close()
    threads, asked = max(1, environment.usable_cores() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(min(threads, int(asked)) if asked.isdigit() and int(asked) else threads)
    if gpus > 1 and jobs > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    try:
        code = run_planned(run)
    except Exception as error:
        code = report(error)
    sys.exit(code)


def describe(outcome: Outcome) -> str:
    """The line, or lines, that tell how a run ended."""
    run = outcome.run
    if outcome.code == locks.BUSY_EXIT:
        return f"in progress elsewhere: {run.name}: {' '.join(outcome.tail)}"
    record = records.read_record(run.folder)
    if outcome.code == 0 and record is not None and not record["metrics"]:
        return f"{run.name}: {record.get('untested')}: predictions alone, {outcome.seconds:.0f} s"
    if outcome.code == 0 and record is not None:
        split = "test" if "test" in record["metrics"] else next(iter(record["metrics"]))
        return f"{run.name}: accuracy {record['metrics'][split]['accuracy']:.1f} %, {outcome.seconds:.0f} s"
    if outcome.code == 0:
        outcome.code, outcome.tail = 1, ["the run ended without an error, but wrote no complete record.json"]
    lines = "".join(f"\n    {line}" for line in outcome.tail)
    return f"FAILED (exit code {outcome.code}): {run.name}; log: {state.log_file(run)}{lines}\n   "
