"""Runs of a whole table, wherever they go: `dassl-clip sweep clap-zeroshot --data /data`.

State is on the disk: a run is complete when its record is there, running while its lock is held, failed when its last
try left `failed.txt`, and otherwise missing. The same command goes on from wherever it was stopped; failed runs are
tried again with `--retry`.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.commands import locks, plan, pool, sheet, task, train
from dassl_clip.commands.arguments import Parser, split_command
from dassl_clip.commands.errors import GOES_ON, UserError, guarded
from dassl_clip.results import environment, records

LAUNCHERS = ("local", "gpus", "slurm")
JOB_MINUTES = 24 * 60  # most time of a job, unless --slurm says otherwise


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command; KEY VALUE pairs, which hold for all runs, are taken off before."""
    parser = Parser(
        prog="dassl-clip sweep",
        description="Run what is missing of a table: what is finished is skipped, what failed is tried on request.",
        usage="%(prog)s NAME_OR_FILE [options] [KEY VALUE ...]",
        epilog="example: dassl-clip sweep clap-zeroshot --data /path/to/data --dry-run",
    )
    parser.add_argument("name", metavar="NAME_OR_FILE", help=f"{', '.join(sheet.sweep_names())}, or a yaml file")
    parser.add_argument("--seeds", nargs="+", type=int, default=(), metavar="N", help="default: the sweep's own")
    parser.add_argument("--rows", nargs="+", default=(), metavar="LABEL", help="only these rows of the table")
    parser.add_argument("--status", action="store_true", help="show the states, run nothing")
    parser.add_argument("--retry", action="store_true", help="try failed runs again")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="local: as many runs as there are cores; gpus: one run a GPU; slurm: job arrays",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="submitit's parameters, such as slurm_partition=gpu timeout_min=600 (default: "
        f"{JOB_MINUTES}); cluster=local for this machine",
    )
    task.add_run_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep; 1 if runs failed or are missing afterwards, 2 with one sentence for a user's error."""
    return guarded(lambda words: run_sweep(*split_command(build_parser(), words)), argv, GOES_ON)


def run_sweep(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Expand, show states, run what is missing."""
    train.register()
    sweep = sheet.read_sweep(args.name)
    entries = sheet.expand(sweep, sheet_request(args), pairs, args.rows)
    runs = list({run.folder: run for run in (entry.run for entry in entries)}.values())
    states = {run.folder: state_of(run) for run in runs}
    print(f"{sweep.title}: {len(runs)} runs: {count_states(states)}")
    for run in runs:
        state, lines = states[run.folder]
        if state in ("failed", "refused"):
            print(f"{state}: {run_id(run)} {run.name}: {run.folder}" + "".join(f"\n    {line}" for line in lines))
    wanted = ("missing", "failed") if args.retry else ("missing",)
    todo = [run for run in runs if states[run.folder][0] in wanted]
    if args.status:
        for run in runs:
            print(f"{states[run.folder][0]:<9} {run_id(run)} {run.name}")
        return 0
    if args.dry_run:
        for run in todo:
            print(run.command)
        return 0
    if args.launcher == "slurm":
        launch_slurm(todo, slurm_parameters(args.slurm), Path(args.out), args.jobs)
    elif todo:
        task.run_stages(todo, _jobs(args))
    after = {run.folder: state_of(run) for run in runs}
    print(f"{sweep.title}: {count_states(after)}; the table: {table_command(args, pairs)}")
    return 0 if all(state == "complete" for state, _ in after.values()) else 1


def sheet_request(args: argparse.Namespace) -> plan.Request:
    """The request in the arguments of `sweep` and `table`; the data sets are the sweep's."""
    return plan.Request(
        dataset="",
        seeds=tuple(args.seeds),
        out=args.out,
        data=args.data,
        shots=args.shots,
        targets=tuple(args.targets),
        imports=tuple(args.imports),
    )


def table_command(args: argparse.Namespace, pairs: Sequence[str]) -> str:
    """The command that shows the runs of a sweep, with what decides which runs they are."""
    words = ["dassl-clip", "table", args.name]
    words += ["--out", args.out] if args.out != "output" else []
    words += ["--data", args.data] if args.data else []
    words += ["--shots", str(args.shots)] if args.shots is not None else []
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    words += ["--rows", *args.rows] if args.rows else []
    words += [word for name in args.imports for word in ("--import", name)]
    return shlex.join([*words, *pairs])


def _jobs(args: argparse.Namespace) -> int | None:
    if args.launcher != "gpus":
        return args.jobs
    gpus = pool.count_gpus()
    if not gpus:
        raise UserError("--launcher gpus: this machine has no usable GPU; take --launcher local")
    return args.jobs or gpus


def run_id(run: plan.Run) -> str:
    """The stable id of a run: the first digits of the hash of its configuration."""
    return records.config_hash(run.cfg)[:12]


def state_of(run: plan.Run) -> tuple[str, list[str]]:
    """`complete`, `running`, `failed` (with its last lines), `refused` (with the reason) or `missing`."""
    state, reason = task.run_state(run)
    if state in ("complete", "refused"):
        return state, [reason] if reason else []
    if locks.is_locked(run.folder):
        return "running", []
    failure = run.folder / task.FAILURE_NAME
    if failure.is_file():
        return "failed", failure.read_text(encoding="utf-8").splitlines()
    return "missing", []


def count_states(states: dict[Path, tuple[str, list[str]]]) -> str:
    """`12 complete, 3 missing`."""
    counts = Counter(state for state, _ in states.values())
    order = ("complete", "running", "failed", "refused", "missing")
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name])


def slurm_parameters(words: Sequence[str]) -> dict[str, Any]:
    """The KEY=VALUE words of `--slurm`, whole numbers as such."""
    for word in words:
        if not word.partition("=")[2]:
            raise UserError(f"--slurm: '{word}' should be KEY=VALUE, such as slurm_partition=gpu")
    pairs = (word.partition("=")[::2] for word in words)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


def launch_slurm(runs: Sequence[plan.Run], parameters: dict[str, Any], out: Path, jobs: int | None) -> None:
    """Submit the runs as job arrays through submitit, and wait for them: first those that others need.

    Args:
        runs: what to run.
        parameters: submitit's, and `cluster` (`slurm`, or `local` for this machine).
        out: folder above all runs; submitit's files go to `.submitit` in it.
        jobs: most jobs at a time; on this machine one a core, where it is not given.

    Raises:
        UserError: submitit is not installed, or does not know a parameter.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1 run must go on at a time")
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs submitit: pip install 'dassl-clip[slurm]'") from None
    options = {"timeout_min": JOB_MINUTES} | ({"slurm_array_parallelism": jobs} if jobs else {}) | parameters
    try:
        executor = submitit.AutoExecutor(out / ".submitit", cluster=options.pop("cluster", None))
        executor.update_parameters(**options)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--slurm: {error}") from error
    most = (jobs or environment.usable_cores()) if executor.cluster == "local" else max(len(runs), 1)
    _submit_and_wait(executor, [run for run in runs if run.needs is None], most)
    _submit_and_wait(executor, task.ready_runs(runs), most)


def _submit_and_wait(executor: Any, runs: Sequence[plan.Run], most: int) -> None:
    """Job arrays of at most `most` runs, one after the other."""
    for start in range(0, len(runs), most):
        part = runs[start : start + most]
        with executor.batch():
            submitted = [executor.submit(run_words, list(run.words), str(run.folder)) for run in part]
        print(f"{len(submitted)} jobs submitted: {submitted[0].job_id} ...", flush=True)
        for run, job in zip(part, submitted):
            try:
                code = job.result()
            except Exception as error:  # a job that was killed, timed out or could not start
                code = 1
                task.note_failure(run.folder, code, str(error).splitlines()[-pool.TAIL_LINES :])
            told = "done" if code == 0 else f"FAILED: {run.folder}"
            told = "another process works on it" if code == locks.BUSY_EXIT else told
            lines = state_of(run)[1] if code else []
            print("\n    ".join([f"{run.name}: {told}", *lines]), flush=True)


def run_words(words: list[str], folder: str) -> int:
    """One run in a job of its own; returns its exit code, and leaves `failed.txt` if it is not 0."""
    train.register()
    place = Path(folder)
    with locks.lock(place) as free:
        if not free:
            return locks.BUSY_EXIT
        if records.is_complete(place):  # finished by another process in the meantime
            return 0
        code = task.execute_words(words, place, plan.resolve(words, ()))
        if code:
            log = place / pool.LOG_NAME
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
            task.note_failure(place, code, lines[-pool.TAIL_LINES :])
    return code
