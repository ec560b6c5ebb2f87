"""A whole task of one method on one data set: `dassl-clip task METHOD icons 1`.

Every run of the task that is not there yet is run, side by side as far as the machine goes; a reference (zero-shot CLIP
with the same prompt words) can stand beside it. The table at the end comes from the records alone.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_clip.cli.arguments import KeyFlag, Parser, add_data, add_import, add_model, add_seeds, command
from dassl_clip.engine import catalogue
from dassl_clip.engine.errors import RESUMES
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import launchers, locks, plan, preflight, state, tables, tasks
from dassl_clip.experiments.methods import Method, known_trainer, method_of, reference_method
from dassl_clip.results import rendering, selection, trust
from dassl_clip.results.groups import check_labels

NO_REFERENCE = "none"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that runs tasks."""
    add_data(parser, "folder above the data sets, short for DATASET.ROOT")
    add_model(parser)
    parser.add_argument("--out", default="output", metavar="DIR", help="folder above all runs (default: output)")
    parser.add_argument("--shots", type=int, metavar="N", action=KeyFlag, key="DATASET.NUM_SHOTS",
                        help="images per class, 0 for all (default: the data set's config, else 16; all under "
                        "DATASET.PROTOCOL domainbed)")  # fmt: skip
    parser.add_argument("--targets", nargs="+", default=(), metavar="DOMAIN", help="only these target domains")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="runs at a time (default: 1 with a GPU, else as many as there are cores)")  # fmt: skip
    add_import(parser, "a trainer or data set")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their state, run nothing")


def add_rule(parser: argparse.ArgumentParser) -> None:
    """The rule by which DomainBed's searches choose."""
    parser.add_argument("--rule", choices=selection.RULES, default="",
                        help="how DomainBed's searches choose; the oracle looks at the target, and its rows say so "
                        f"(default: the sweep's own, else {selection.TRAINING_DOMAIN})")  # fmt: skip


def sweep_command(word: str, names: Sequence[str], args: argparse.Namespace, pairs: Pairs) -> str:
    """`dassl-clip sweep ...` or `dassl-clip table ...` with what decides which runs of a sweep are meant."""
    words = ["dassl-clip", word, *names]
    words += ["--out", args.out] if args.out != "output" else []
    words += ["--data", args.data] if args.data else []
    words += ["--shots", str(args.shots)] if args.shots is not None else []
    words += ["--rule", args.rule] if args.rule else []
    for flag in ("seeds", "rows", "datasets", "targets"):
        words += [f"--{flag}", *map(str, getattr(args, flag))] if getattr(args, flag) else []
    words += [word for name in args.imports for word in ("--import", name)]
    return shlex.join([*words, *(word for pair in pairs for word in pair)])


@dataclass(frozen=True)
class Printing:
    """What tables show, under which names, and whether with the lines above them."""

    columns: Sequence[str] = trust.DEFAULT_COLUMNS
    labels: Sequence[str] = ()
    header: bool = True
    spread: rendering.Spread = rendering.DEVIATION


def add_printing(parser: argparse.ArgumentParser) -> None:
    """The flags that choose what tables show."""
    parser.add_argument("--columns", nargs="+", default=trust.DEFAULT_COLUMNS, metavar="COLUMN",
                        help=f"what the tables show, of {', '.join(trust.COLUMNS)}; one table for each measure, and "
                        "'worst' (target domain) and 'interval' (of the gain over the reference, 95 %%, over the "
                        "tested images) as further columns beside accuracy; 'cost' for learned parameters, seconds, "
                        "memory and what is read; 'losing' for the share of draws (tasks batch, stream, online) below "
                        "the reference (default: accuracy; of `table FOLDER` as text also cost)")  # fmt: skip
    parser.add_argument("--label", nargs="+", default=(), metavar="PATTERN=NAME",
                        help="names of rows, or of the weights in them: 'METHOD (*)=mine' '*/x.pt=ours'")  # fmt: skip
    parser.add_argument("--drop-header", action="store_true",
                        help="leave out the lines above a table: protocol, prompts, selection rule, seeds")  # fmt: skip
    parser.add_argument("--spread", choices=rendering.SPREADS, default="",
                        help="what follows +/- in a cell of several seeds: their sample standard deviation, or "
                        "DomainBed's error, the deviation with divisor n over the root of n (default: deviation, of "
                        "sweeps over trials error)")  # fmt: skip


def printing_of(args: argparse.Namespace) -> Printing:
    """What a command's arguments say of its tables.

    Raises:
        UserError: there is no such column, or a label is no `PATTERN=NAME`.
    """
    check_labels(args.label)
    spread = rendering.SPREADS.get(args.spread, rendering.DEVIATION)
    return Printing(trust.check_columns(args.columns), args.label, not args.drop_header, spread)


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip task",
        description="Run a task of one method on one data set: what is finished is skipped, what is broken is redone.",
        usage="%(prog)s METHOD DATASET SEED [SEED ...] [options] [KEY VALUE ...]",
        epilog="examples:\n  dassl-clip task METHOD icons 1 --task fewshot OPTIM.MAX_EPOCH=4\n"
        "  dassl-clip task METHOD pacs 1 2 3 --root /path/to/data --backbone ViT-B/16",
    )
    parser.add_argument(
        "method", metavar="METHOD", help="registry name of a trainer; METHOD+REFINER refines its runs with another one"
    )
    parser.add_argument("dataset", metavar="DATASET", help="data set with a config, such as icons, or a yaml file")
    add_seeds(parser, "seeds", metavar="SEED", help="one seed, or several: 1 2 3 or 1,2,3")
    parser.add_argument("--task", nargs="+", default=(), metavar="TASK",
                        help=f"one or more of {', '.join(tasks.TASKS)} (default: by the configs)")  # fmt: skip
    parser.add_argument("--config", default="", metavar="NAME_OR_FILE",
                        help="config of the method (default: the data set's own, else vit_b16)")  # fmt: skip
    parser.add_argument("--reference", default=NO_REFERENCE, metavar="METHOD[:CONFIG]",
                        help="method to run beside it for the gain; 'none' for none")  # fmt: skip
    add_run_arguments(parser)
    add_printing(parser)
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    printing = printing_of(args)
    word, dataset = in_order(args.method, args.dataset)
    request = request_of(args, dataset, args.task)
    method = method_of(word, pairs, args.config, request.imports)
    reference, _, config = args.reference.partition(":")
    compared = reference.lower() not in ("", NO_REFERENCE)
    reference = known_trainer(reference, config, request.imports) if compared else ""
    request = plan.with_tasks(request, method)
    methods = [reference_method(request.overrides(method), reference, config)] if compared else []
    return run_methods(request, [*methods, method], args.jobs, args.dry_run, printing)


def in_order(method: str, dataset: str) -> tuple[str, str]:
    """Method and data set, also where the data set was typed first."""
    if not catalogue.names_dataset(method) or catalogue.names_dataset(dataset):
        return method, dataset
    print(f"read as METHOD {dataset} and DATASET {method}: the method comes first", file=sys.stderr)
    return dataset, method


def request_of(args: argparse.Namespace, dataset: str = "", words: Sequence[str] = ()) -> plan.Request:
    """The request in a command's arguments; the data sets of a sweep are its own.

    Raises:
        UserError: no such task.
    """
    names = [name for word in words for name in word.replace(",", " ").split()]
    tasks.check_names(names)
    return plan.Request(
        dataset=dataset,
        seeds=tuple(args.seeds),
        tasks=tuple(names),
        out=args.out,
        data=args.data,
        shots=args.shots,
        targets=tuple(args.targets),
        imports=tuple(args.imports),
    )


def run_methods(
    request: plan.Request,
    methods: Sequence[Method],
    jobs: int | None,
    dry_run: bool = False,
    printing: Printing | None = None,
) -> int:
    """Run what is missing of several methods and print one table per task; the first method is the reference.

    Args:
        request: what is asked for of every method.
        methods: the rows of the tables.
        jobs: runs at a time; None: as many as the machine takes.
        dry_run: print the runs and run nothing.
        printing: how the tables are printed; None: they are not.

    Returns:
        0, or 1 if a run failed, was refused or was left out.
    """
    with_bases = [other for method in methods for other in (method.base, method) if other is not None]
    runs = [run for method in dict.fromkeys(with_bases) for run in plan.plan_runs(request, method)]
    todo = []
    for run in runs:
        now = state.state_of(run)
        if now.name == state.COMPLETE:
            print(f"skipped, complete: {run.name} ({run.folder})" + (f": {now.reason}" if now.reason else ""))
        elif now.name == state.REFUSED:
            print(f"refused: {run.name}: {now.reason}", file=sys.stderr)
        elif now.name == state.RUNNING:
            print(f"in progress elsewhere: {run.name}: {locks.busy_sentence(run.folder)}", file=sys.stderr)
        else:
            todo.append(run)
            if now.reason:
                print(f"{now.next_try or now.name}: {run.name}: {now.reason}")
    if dry_run:
        for run in todo:
            print(run.command)
        return 0
    if todo:
        preflight.check(todo, Path(request.out))
    failed = launchers.run_in_order(
        runs, todo, lambda some, outlook: launchers.run_locally(some, jobs, outlook=outlook)
    )
    if printing is not None:
        print_tables(runs, printing)
    for outcome in failed:
        if outcome.code != locks.BUSY_EXIT:
            print(f"failed: {outcome.run.name}, log: {state.log_file(outcome.run)}", file=sys.stderr)
    absent = [run for run in runs if not state.is_complete(run)]
    if absent:
        print(f"{len(absent)} of {len(runs)} runs are missing from the table", file=sys.stderr)
    return 1 if absent else 0


def print_tables(runs: Sequence[plan.Run], printing: Printing) -> None:
    """The tables of each task among some runs."""
    for name in dict.fromkeys(run.task for run in runs):
        own = [run for run in runs if run.task == name]
        made = tables.task_tables(own, shown=printing.columns, labels=printing.labels)
        made = [table.with_spread(printing.spread) for table in made]
        text = rendering.render_tables(made, header=printing.header)
        print(f"\n{text or f'{name}: no finished run that measured anything'}")


main = command(build_parser, run, RESUMES)
