"""Runs of a whole table, wherever they go: `dassl-clip sweep clap-zeroshot --data /data`.

State is on the disk: a run is complete when its record is there, running while its lock is held, failed when its last
try left `failed.txt`, and otherwise missing. The same command goes on from wherever it was stopped; failed runs are
tried again with `--retry`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dassl_clip.cli import task, train
from dassl_clip.cli.arguments import Parser, split_command
from dassl_clip.engine.errors import GOES_ON, guarded
from dassl_clip.engine.ranges import make_folder
from dassl_clip.experiments import launchers as pool
from dassl_clip.experiments import locks, plan, slurm
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.results import records
from dassl_clip.results.errors import UserError

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
    parser.add_argument("--gpus", type=devices, default=[], metavar="0,1", help="with --launcher gpus: only these GPUs")
    parser.add_argument("--slurm", nargs="+", default=(), metavar="KEY=VALUE",
                        help="submitit's parameters, such as slurm_partition=gpu timeout_min=600 (default: "
                        f"{slurm.JOB_MINUTES}); cluster=local for this machine")  # fmt: skip
    task.add_run_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep; 1 if runs failed or are missing afterwards, 2 with one sentence for a user's error."""
    return guarded(lambda words: run_sweep(*split_command(build_parser(), words)), argv, GOES_ON)


def run_sweep(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Expand, show states, run what is missing."""
    train.register()
    if (args.gpus and args.launcher != "gpus") or (args.slurm and args.launcher != "slurm"):
        name = "gpus" if args.gpus and args.launcher != "gpus" else "slurm"
        raise UserError(f"--{name} goes with --launcher {name}, and this is --launcher {args.launcher}")
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
    if todo:
        make_folder(Path(args.out), "--out")
    if args.launcher == "slurm":
        with slurm.launcher(slurm.parameters(args.slurm), Path(args.out), args.jobs, len(todo)) as submit:
            run_all(runs, todo, submit)
    elif todo:
        jobs, gpus = _places(args)
        run_all(runs, todo, lambda some: task.run_missing(some, jobs, gpus))
    after = {run.folder: state_of(run) for run in runs}
    print(f"{sweep.title}: {count_states(after)}; the table: {table_command(args, pairs)}")
    return 0 if all(state == "complete" for state, _ in after.values()) else 1


def run_all(
    runs: Sequence[plan.Run], todo: Sequence[plan.Run], work: Callable[[list[plan.Run]], list[pool.Outcome]]
) -> None:
    """Run what is to do, then what was made of a run that has learned something else now."""
    task.run_stages(todo, work)
    if outdated := task.outdated_runs(runs, todo):
        task.run_stages(outdated, work)


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


def _places(args: argparse.Namespace) -> tuple[int | None, int | None]:
    """How many runs go on at a time, and on how many GPUs; None for what the machine suggests."""
    if args.launcher != "gpus":
        return args.jobs, None
    if args.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(args.gpus)
    gpus = pool.count_gpus()
    if args.gpus and gpus != len(args.gpus):
        names = ",".join(args.gpus)
        print(f"caution: of --gpus {names} torch can use {gpus}; what has none works on the CPU", file=sys.stderr)
    if not gpus and not args.gpus:
        raise UserError("--launcher gpus: this machine has no usable GPU; take --launcher local")
    return args.jobs or len(args.gpus) or gpus, len(args.gpus) or gpus


def devices(text: str) -> list[str]:
    """`0,1`, or identifiers of GPUs, as a list."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' should be numbers or identifiers of GPUs, each once: 0,1,2")
    return names


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
