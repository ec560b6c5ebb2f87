"""Runs of a plan as job arrays through submitit: on a slurm cluster, or with its local executor on this machine.

The command waits for its jobs. Ctrl-C or SIGTERM cancels those that have not ended; a connection that breaks (SIGHUP)
leaves them to the cluster. Either way the same command resumes them.
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.engine.paths import leave_checkout
from dassl_clip.results import environment
from dassl_clip.results.errors import UserError

from . import locks, state
from .launchers import TAIL_LINES, Launcher, Outcome, ends_on_sigterm
from .plan import Run
from .progress import Outlook
from .run import run_planned

JOB_MINUTES = 24 * 60  # most time of a job, unless --slurm says otherwise
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of runs that were stopped and can be resumed


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """The KEY=VALUE words of `--slurm`, whole numbers as such."""
    for word in words:
        if not word.partition("=")[2]:
            raise UserError(f"--slurm: '{word}' should be KEY=VALUE, such as slurm_partition=gpu")
    pairs = (word.partition("=")[::2] for word in words)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


def launcher(given: dict[str, Any], out: Path, jobs: int | None) -> Launcher:
    """A function that submits some runs as jobs, waits for them, and returns the failures.

    Args:
        given: submitit's parameters, and `cluster` (`slurm`, or `local` for this machine).
        out: folder above all runs; submitit's files go to `.submitit` in it.
        jobs: most jobs at a time; on this machine one per core, where it is not given.

    Raises:
        UserError: submitit is not installed, or does not know a parameter.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1 run at a time")
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

    def job_array(runs: Sequence[Run]) -> list[Outcome]:
        with executor.batch():
            submitted = [executor.submit(run_job, run) for run in runs]
        print(f"{len(submitted)} jobs submitted: {submitted[0].job_id} ...", flush=True)
        try:
            return [outcome_of(run, job) for run, job in zip(runs, submitted)]
        except BaseException:  # SIGTERM and Ctrl-C too
            unfinished = [job for job in submitted if not job.done()]
            for job in unfinished:
                job.cancel()
            print(f"{len(unfinished)} jobs cancelled", flush=True)
            raise

    def launch(runs: Sequence[Run], outlook: Outlook) -> list[Outcome]:
        most = (jobs or environment.usable_cores()) if executor.cluster == "local" else len(runs)
        parts = [runs[start : start + most] for start in range(0, len(runs), most)]
        with ends_on_sigterm():
            return [outcome for part in parts for outcome in job_array(part) if outcome.code]

    return launch


def outcome_of(run: Run, job: Any) -> Outcome:
    """Wait for a job, and print how it ended."""
    try:
        code, tail = job.result(), []
    except Exception as error:  # a job that was killed, timed out or could not start
        code, tail = 1, str(error).splitlines()[-TAIL_LINES:]
        state.note_failure(run.folder, code, tail)
    known = {0: "done", locks.BUSY_EXIT: "another process works on it"}
    known |= dict.fromkeys(INTERRUPTED, "stopped; the same command resumes it")
    ended = known.get(code, "")
    if not ended:
        failure = run.folder / state.FAILURE_NAME
        tail = failure.read_text(encoding="utf-8").splitlines() if failure.is_file() else tail
        ended = f"FAILED: {run.folder}"
    print("\n    ".join([f"{run.name}: {ended}", *tail]), flush=True)
    return Outcome(run, code, tail=tail)


def run_job(run: Run) -> int:
    """One run in a job of its own; returns its exit code, and leaves `failed.txt` if it failed."""
    leave_checkout()  # the job's Python was started in the working folder
    code = run_planned(run)
    if code and code not in (*INTERRUPTED, locks.BUSY_EXIT):
        log = state.log_file(run)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        state.note_failure(run.folder, code, lines[-TAIL_LINES:])
    return code
