"""Runs of a sweep as job arrays through submitit: on a slurm cluster, or with its local executor on this machine.

The command waits for its jobs. Ctrl-C or SIGTERM cancels those that have not ended; a connection that breaks (SIGHUP)
leaves them to the cluster. Either way the same command goes on from what is there.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dassl_clip.cli import task, train
from dassl_clip.engine.paths import leave_checkout
from dassl_clip.results import environment
from dassl_clip.results.errors import UserError

from . import identity, locks, plan
from . import launchers as pool

JOB_MINUTES = 24 * 60  # most time of a job, unless --slurm says otherwise
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of runs that were told to end and can go on


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """The KEY=VALUE words of `--slurm`, whole numbers as such."""
    for word in words:
        if not word.partition("=")[2]:
            raise UserError(f"--slurm: '{word}' should be KEY=VALUE, such as slurm_partition=gpu")
    pairs = (word.partition("=")[::2] for word in words)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


@contextlib.contextmanager
def launcher(
    given: dict[str, Any], out: Path, jobs: int | None, runs: int
) -> Iterator[Callable[[Sequence[plan.Run]], list[pool.Outcome]]]:
    """A function that submits some runs, waits for them, and returns the failures; SIGTERM ends it as Ctrl-C does.

    Args:
        given: submitit's parameters, and `cluster` (`slurm`, or `local` for this machine).
        out: folder above all runs; submitit's files go to `.submitit` in it.
        jobs: most jobs at a time; on this machine one a core, where it is not given.
        runs: how many runs there are in all.

    Raises:
        UserError: submitit is not installed, or does not know a parameter.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1 run must go on at a time")
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs submitit: pip install 'dassl-clip[slurm]'") from None
    options = {"timeout_min": JOB_MINUTES} | ({"slurm_array_parallelism": jobs} if jobs else {}) | given
    try:
        executor = submitit.AutoExecutor(out / ".submitit", cluster=options.pop("cluster", None))
        executor.update_parameters(**options)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--slurm: {error}") from error
    most = (jobs or environment.usable_cores()) if executor.cluster == "local" else max(runs, 1)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield lambda some: submit_and_wait(executor, some, most)
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    """On SIGTERM: cancel the jobs on the way out, then end with the signal's own exit code."""
    raise SystemExit(128 + number)


def submit_and_wait(executor: Any, runs: Sequence[plan.Run], most: int) -> list[pool.Outcome]:
    """Job arrays of at most `most` runs, one after the other; returns the failures."""
    failed = []
    for start in range(0, len(runs), most):
        part = runs[start : start + most]
        with executor.batch():
            submitted = [executor.submit(run_words, list(run.words), str(run.folder)) for run in part]
        print(f"{len(submitted)} jobs submitted: {submitted[0].job_id} ...", flush=True)
        try:
            outcomes = [wait(run, job) for run, job in zip(part, submitted)]
        except BaseException:
            left = [job for job in submitted if not job.done()]
            for job in left:
                job.cancel()
            print(f"{len(left)} jobs cancelled", flush=True)
            raise
        failed += [outcome for outcome in outcomes if outcome.code]
    return failed


def wait(run: plan.Run, job: Any) -> pool.Outcome:
    """Wait for a job and tell how it ended."""
    try:
        code, tail = job.result(), []
    except Exception as error:  # a job that was killed, timed out or could not start
        code, tail = 1, str(error).splitlines()[-pool.TAIL_LINES :]
        task.note_failure(run.folder, code, tail)
    if code == 0:
        told = "done"
    elif code == locks.BUSY_EXIT:
        told = "another process works on it"
    elif code in INTERRUPTED:
        told = "told to end; the same command goes on from here"
    else:
        failure = run.folder / task.FAILURE_NAME
        tail = failure.read_text(encoding="utf-8").splitlines() if failure.is_file() else tail
        told = f"FAILED: {run.folder}"
    print("\n    ".join([f"{run.name}: {told}", *tail]), flush=True)
    return pool.Outcome(run, code, 0.0, tail)


def run_words(words: list[str], folder: str) -> int:
    """One run in a job of its own; returns its exit code, and leaves `failed.txt` if it failed."""
    leave_checkout()  # the job's Python was started in the working folder
    train.register()
    place = Path(folder)
    with locks.lock(place) as free:
        if not free:
            return locks.BUSY_EXIT
        cfg = plan.resolve(words, ())
        if identity.is_finished(place, cfg):  # finished by another process in the meantime
            return 0
        code = task.execute_words(words, place, cfg)
        if code and code not in INTERRUPTED:
            log = place / pool.LOG_NAME
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
            task.note_failure(place, code, lines[-pool.TAIL_LINES :])
    return code
