"""Runs of a whole table, wherever they go: `dassl-clip sweep clap-zeroshot --data /data`.

The same command resumes from wherever it was stopped; failed runs are tried again with `--retry`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from dassl_clip.cli import task
from dassl_clip.cli.arguments import Parser, add_seeds, command
from dassl_clip.engine.errors import RESUMES
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import launchers, plan, preflight, price, search, slurm, state, sweeps
from dassl_clip.results.errors import UserError

LAUNCHERS = ("local", "gpus", "slurm")


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip sweep",
        description="Run what is missing of a table: what is finished is skipped, what failed is tried on request.",
        usage="%(prog)s NAME_OR_FILE [options] [KEY VALUE ...]",
        epilog="example: dassl-clip sweep clap-zeroshot --data /path/to/data --dry-run",
    )
    parser.add_argument("name", metavar="NAME_OR_FILE", help=f"{', '.join(sweeps.sweep_names())}, or a yaml file")
    add_seeds(parser, "--seeds", default=(), metavar="N", help="1 2 3 or 1,2,3 (default: the sweep's own)")
    parser.add_argument("--rows", nargs="+", default=(), metavar="LABEL", help="only these rows of the table")
    parser.add_argument("--datasets", nargs="+", default=(), metavar="NAME", help="only these data sets")
    task.add_rule(parser)
    parser.add_argument("--status", action="store_true", help="show the states, run nothing")
    parser.add_argument("--retry", action="store_true", help="try failed runs again")
    parser.add_argument("--delete-weights", action="store_true",
                        help="once all is tested, delete the weights of search runs that were not chosen")  # fmt: skip
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local",
                        help="local: as many runs as cores; gpus: one run a GPU; slurm: job arrays")  # fmt: skip
    parser.add_argument("--gpus", type=devices, default=[], metavar="0,1", help="with --launcher gpus: only these GPUs")
    parser.add_argument("--slurm", nargs="+", default=(), metavar="KEY=VALUE",
                        help="submitit's parameters, such as slurm_partition=gpu timeout_min=600 (default: "
                        f"{slurm.JOB_MINUTES}); cluster=local for this machine")  # fmt: skip
    task.add_run_arguments(parser)
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Expand, show states, run what is missing."""
    for flag in ("gpus", "slurm"):
        if getattr(args, flag) and args.launcher != flag:
            raise UserError(f"--{flag} goes with --launcher {flag}, and this is --launcher {args.launcher}")
    sweep = sweeps.read_sweep(args.name)

    def planned() -> list[sweeps.Entry]:
        return sweeps.expand(sweep, task.request_of(args), pairs, args.rows, args.datasets, args.rule)

    entries = planned()
    runs = sweeps.runs_of(entries)
    searches = {entry.run.folder for entry in entries if entry.searches and entry.is_trial}
    states = {run.folder: state.state_of(run) for run in runs}
    print(f"{sweep.title}: {len(runs)} runs: {state.count_states(states.values())}")
    for run in runs:
        now = states[run.folder]
        if now.name in (state.FAILED, state.REFUSED):
            lines = now.lines or (now.reason,)
            print("\n    ".join([f"{now.name}: {state.run_id(run)} {run.name}: {run.folder}", *lines]))
    wanted = (*state.UNFINISHED, state.FAILED) if args.retry else state.UNFINISHED
    todo = [run for run in runs if states[run.folder].name in wanted]
    if args.status:
        width = max(len(run.dataset) for run in runs)
        for run in runs:
            print(f"{states[run.folder].name:<9} {state.run_id(run)} {run.dataset:<{width}} {run.name}")
        return 0
    searching = [run for run in todo if run.folder in searches]
    if searching:
        print(price.plan_line(searching))
    if args.dry_run:
        print("".join(f"{run.command}\n" for run in todo), end="")
        return 0
    if todo:
        preflight.check(todo, Path(args.out))
    if searching and args.launcher != "slurm":
        tell_price(searching)
    if todo or args.launcher == "slurm":
        launchers.run_in_order(runs, todo, launcher_of(args))
    found = {run.folder for run in runs}
    entries = planned()
    if chosen := [run for run in sweeps.runs_of(entries) if run.folder not in found]:  # searches are finished
        rules = {entry.choice.rule for entry in entries if entry.choice}
        where = f"by {', '.join(sorted(rules))}" if rules else "on source validation images"
        print(f"chosen {where}: {len(chosen)} run{'s' * (len(chosen) != 1)} to test")
        runs = [*runs, *chosen]
        launchers.run_in_order(runs, chosen, launcher_of(args))
    after = [state.state_of(run) for run in runs]
    if args.delete_weights and all(now.name == state.COMPLETE for now in after):
        delete_weights(search.unneeded_weights(entries))
    table = task.sweep_command("table", [args.name], args, pairs)
    print(f"{sweep.title}: {state.count_states(after)}; the table: {table}")
    return 0 if all(now.name == state.COMPLETE for now in after) else 1


def delete_weights(files: list[Path]) -> None:
    """Delete files of weights, and say so."""
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    if files:
        print(f"search: deleted {size / 2**30:.2f} GB of weights of runs that were not chosen; their records stay")


def tell_price(runs: list[plan.Run]) -> None:
    """Time ten steps of each data set, and print what the runs of searches will cost."""
    with tempfile.TemporaryDirectory() as folder:
        measured = price.measure(runs, Path(folder), lambda some: launchers.run_locally(some, 1))
    known = [run for run in runs if run.config.DATASET.NAME in measured]
    print("\n".join(price.price_lines(known, measured)), flush=True)


def launcher_of(args: argparse.Namespace) -> launchers.Launcher:
    """What makes the runs: this machine, its GPUs, or a cluster."""
    if args.launcher == "slurm":
        return slurm.launcher(slurm.parameters(args.slurm), Path(args.out), args.jobs)
    if args.launcher == "local":
        return lambda runs, outlook: launchers.run_locally(runs, args.jobs, outlook=outlook)
    if args.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(args.gpus)
    gpus = launchers.count_gpus()
    if args.gpus and gpus != len(args.gpus):
        names = ",".join(args.gpus)
        print(f"caution: of --gpus {names} torch can use {gpus}; what has none works on the CPU", file=sys.stderr)
    if not gpus and not args.gpus:
        raise UserError("--launcher gpus: this machine has no usable GPU; take --launcher local")
    count = len(args.gpus) or gpus
    return lambda runs, outlook: launchers.run_locally(runs, args.jobs or count, count, outlook)


def devices(text: str) -> list[str]:
    """`0,1`, or identifiers of GPUs, as a list."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' should be numbers or identifiers of GPUs, each once: 0,1,2")
    return names


main = command(build_parser, run, RESUMES)
