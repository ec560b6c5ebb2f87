"""Runs of a whole table, wherever they go: `dassl-clip sweep clap-zeroshot --data /data`.

State is on the disk: a run is complete when its record is there, running while its lock is held, failed when its last
try left `failed.txt`, and otherwise missing. The same command goes on from wherever it was stopped; failed runs are
tried again with `--retry`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.commands import plan, pool, sheet, task, train
from dassl_clip.commands.arguments import Parser, split_command
from dassl_clip.commands.errors import INTERRUPTED_EXIT, UserError, report
from dassl_clip.results import records

LAUNCHERS = ("local", "gpus", "slurm")


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
        help="submitit's parameters, such as slurm_partition=gpu timeout_min=600; cluster=local for this machine",
    )
    task.add_run_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep; 1 if runs failed or are missing afterwards, 2 with one sentence for a user's error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args, pairs = split_command(build_parser(), argv)
        return run_sweep(args, pairs)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED_EXIT
    except Exception as error:
        return report(error, "--debug" in argv)


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
        launch_slurm(todo, dict(word.partition("=")[::2] for word in args.slurm), Path(args.out), args.jobs)
    elif todo:
        task.run_stages(todo, _jobs(args))
    after = {run.folder: state_of(run) for run in runs}
    print(f"{sweep.title}: {count_states(after)}; the table: dassl-clip table {args.name}" + _same_place(args))
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


def _same_place(args: argparse.Namespace) -> str:
    """The arguments that `dassl-clip table` needs to look at the same runs."""
    out = "" if args.out == "output" else f" --out {args.out}"
    seeds = f" --seeds {' '.join(map(str, args.seeds))}" if args.seeds else ""
    return out + seeds + (f" --data {args.data}" if args.data else "")


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
    if pool.is_locked(run.folder):
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


def launch_slurm(runs: Sequence[plan.Run], parameters: dict[str, Any], out: Path, jobs: int | None) -> None:
    """Submit the runs as job arrays through submitit, and wait for them: first those that others need.

    Args:
        runs: what to run.
        parameters: submitit's, and `cluster` (`slurm`, or `local` for this machine).
        out: folder above all runs; submitit's files go to `.submitit` in it.
        jobs: most jobs of an array at a time.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs submitit: pip install 'dassl-clip[slurm]'") from None
    executor = submitit.AutoExecutor(out / ".submitit", cluster=parameters.pop("cluster", None))
    options = {key: int(value) if value.isdigit() else value for key, value in parameters.items()}
    if jobs:
        options.setdefault("slurm_array_parallelism", jobs)
    executor.update_parameters(**options)
    for stage in ([run for run in runs if run.needs is None], [run for run in runs if run.needs is not None]):
        stage = [run for run in stage if run.needs is None or records.is_complete(run.needs)]
        if not stage:
            continue
        with executor.batch():
            submitted = [executor.submit(run_words, list(run.words), str(run.folder)) for run in stage]
        print(f"{len(submitted)} jobs submitted: {submitted[0].job_id} ...", flush=True)
        for run, job in zip(stage, submitted):
            try:
                code, lines = job.result(), []
            except Exception as error:  # a job that was killed, timed out or could not start
                code, lines = 1, str(error).splitlines()[-pool.TAIL_LINES :]
            print(f"{run.name}: " + ("done" if code == 0 else f"FAILED (exit code {code}), {run.folder}"), flush=True)
            if code and lines:
                task.note_failure(run.folder, code, lines)


def run_words(words: list[str], folder: str) -> int:
    """One run in a job of its own; returns its exit code, and leaves `failed.txt` if it is not 0."""
    train.register()
    place = Path(folder)
    with pool.lock(place) as free:
        if not free:
            return pool.BUSY_EXIT
        task.prepare_folder(place, plan.resolve(words, ()))
        code = train.main(words)
        if code:
            log = place / pool.LOG_NAME
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
            task.note_failure(place, code, lines[-pool.TAIL_LINES :])
    return code
