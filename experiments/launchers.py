"""Runs side by side, each in a child forked from one process that has torch and the toolbox imported already.

The parent starts no threads and touches no GPU before it forks. A child's output goes to its run's log.txt, and through
a pipe to the parent, which reads the progress from it and keeps the last lines for the case of a failure. Children die
with their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dassl_clip.engine.errors import USAGE_EXIT, report
from dassl_clip.results import environment

from .identity import is_finished
from .locks import BUSY_EXIT, busy_sentence, lock
from .progress import Reporter, fraction_done

if TYPE_CHECKING:
    from .plan import Run

LOG_NAME = "log.txt"
TAIL_LINES = 15
_MEMORY_A_RUN = 2 * 2**30
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_SAVE = 20.0


@dataclass
class Outcome:
    """How one run ended: `code` 0 is good; `tail` holds its last lines otherwise."""

    run: Run
    code: int
    seconds: float
    tail: list[str] = field(default_factory=list)


@dataclass
class _Child:
    run: Run
    pid: int
    pipe: int
    slot: int
    started: float
    partial: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


def default_jobs(runs: int, gpus: int, cores: int, memory: int) -> int:
    """How many runs go side by side: one on a machine with GPUs, otherwise one a core as far as runs and memory go.

    Args:
        runs: number of runs.
        gpus: number of GPUs.
        cores: usable cores.
        memory: free bytes.
    """
    return 1 if gpus else max(1, min(cores, runs, memory // _MEMORY_A_RUN))


def free_memory() -> int:
    """Bytes of memory that can be had, or a large number where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 2**62


def count_gpus() -> int:
    """Number of usable GPUs, counted in a child so that this process stays fit to fork."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return 0
    pid = _fork()
    if pid == 0:
        count = 0
        with contextlib.suppress(Exception):
            count = min(torch.cuda.device_count(), 255) if torch.cuda.is_available() else 0
        os._exit(count)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all(
    runs: Sequence[Run], execute: Callable[[Run], int], jobs: int, gpus: int, reporter: Reporter, done: Callable
) -> list[Outcome]:
    """Run everything, at most `jobs` at a time, and go on after failures.

    Args:
        runs: what to run, in this order.
        execute: called in the child; returns its exit code.
        jobs: children at a time; the cores are divided among them.
        gpus: number of GPUs; several jobs take them in turn.
        reporter: shows the progress.
        done: called with each `Outcome` in the parent; returns the line to show for it.

    Returns:
        The outcomes in the order in which the runs ended.
    """
    waiting = deque(runs)
    slots = list(range(jobs))
    children: dict[int, _Child] = {}
    outcomes: list[Outcome] = []
    selector = selectors.DefaultSelector()
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        while waiting or children:
            while waiting and slots:
                run = waiting.popleft()
                reporter.say(f"$ {run.command}")
                child = _start(run, execute, slots.pop(0), jobs, gpus)
                children[child.pid] = child
                selector.register(child.pipe, selectors.EVENT_READ, child)
            for key, _ in selector.select(timeout=0.1):
                if _read(key.data, reporter) is None:
                    selector.unregister(key.fd)
            for child in list(children.values()):
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid == 0:
                    continue
                while _read(child, reporter):
                    pass
                with contextlib.suppress(KeyError):
                    selector.unregister(child.pipe)
                os.close(child.pipe)
                del children[pid]
                slots.append(child.slot)
                slots.sort()
                outcomes.append(_outcome(child, os.waitstatus_to_exitcode(status)))
                reporter.finish(child.run.name, done(outcomes[-1]))
    finally:
        _stop(list(children.values()))
        selector.close()
        signal.signal(signal.SIGTERM, before)
    return outcomes


def _fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python warns of forking beside threads; the only ones here are those of idle maths libraries.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _start(run: Run, execute: Callable[[Run], int], slot: int, jobs: int, gpus: int) -> _Child:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = _fork()
    if pid:
        os.close(writing)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.set_blocking(reading, False)
        return _Child(run, pid, reading, slot, time.monotonic())
    code = 1
    try:
        os.close(reading)
        _become_child(writing, parent)
        code = _in_child(run, execute, slot, jobs, gpus)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        code = report(error)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_child(writing: int, parent: int) -> None:
    """Own process group, output into the pipe, and an end when the parent ends."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def _in_child(run: Run, execute: Callable[[Run], int], slot: int, jobs: int, gpus: int) -> int:
    import torch

    threads = max(1, environment.usable_cores() // jobs)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(min(threads, int(asked)) if asked.isdigit() and int(asked) else threads)
    if gpus > 1 and jobs > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    with lock(run.folder) as free:
        if not free:
            print(busy_sentence(run.folder), file=sys.stderr)
            return BUSY_EXIT
        if is_finished(run.folder, run.cfg):  # finished by another process in the meantime
            return 0
        return execute(run)


def _read(child: _Child, reporter: Reporter) -> bool | None:
    """Take what a child has printed; False when there is nothing more for now, None when there will be nothing more."""
    try:
        data = os.read(child.pipe, 65536)
    except BlockingIOError:
        return False
    if not data:
        return None
    *lines, child.partial = (child.partial + data.decode("utf-8", "replace")).split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]  # of a bar only what stays
    child.partial = child.partial.rpartition("\r")[2] or child.partial
    for line in filter(str.strip, lines):
        share = fraction_done(line)
        if share is not None:
            reporter.update(child.run.name, child.run.label, share)
        child.tail.append(line.rstrip())
    return True


def _outcome(child: _Child, code: int) -> Outcome:
    tail = [*child.tail, *([child.partial] if child.partial.strip() else [])]
    if code == USAGE_EXIT:
        tail = [line for line in tail if line.startswith("error: ")] or tail
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        tail.append(f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else ""))
        with contextlib.suppress(OSError), open(child.run.folder / LOG_NAME, "a", encoding="utf-8") as log:
            log.write(tail[-1] + "\n")
    return Outcome(child.run, code, time.monotonic() - child.started, tail if code else [])


def _leave(number: int, frame: object) -> None:
    """On SIGTERM: end the children, then this process, with the signal's own exit code."""
    raise SystemExit(128 + number)


def _stop(children: list[_Child]) -> None:
    """End children: they may save first; who does not end in time is killed, with everything that it started."""
    for sign, patience in ((signal.SIGTERM, _SECONDS_TO_SAVE), (signal.SIGKILL, 2.0)):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                (os.kill if sign == signal.SIGTERM else os.killpg)(child.pid, sign)
        deadline = time.monotonic() + patience
        while children and time.monotonic() < deadline:
            children = [child for child in children if not _has_ended(child)]
            time.sleep(0.05)


def _has_ended(child: _Child) -> bool:
    try:
        ended = os.waitpid(child.pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        ended = True
    if ended:
        os.close(child.pipe)
    return ended
