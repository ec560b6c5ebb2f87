"""A whole task of one method on one data set: `dassl-clip task GOPro icons 1`.

Every run of the task that is not there yet is run, side by side as far as the machine goes; a reference (zero-shot CLIP
with the same prompt words) can stand beside it. The table at the end comes from the records alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dassl_clip.cli import train
from dassl_clip.cli.arguments import Parser, seeds, split_command
from dassl_clip.engine import catalogue
from dassl_clip.engine.config import import_user_code
from dassl_clip.engine.errors import GOES_ON, guarded
from dassl_clip.engine.ranges import make_folder
from dassl_clip.experiments import identity, locks, plan, reference, reuse, tasks
from dassl_clip.experiments import launchers as pool
from dassl_clip.experiments.progress import Reporter
from dassl_clip.results import environment, records, tables
from dassl_clip.results.documents import read_config
from dassl_clip.results.errors import UserError

NO_REFERENCE = "none"
FAILURE_NAME = "failed.txt"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that runs tasks."""
    parser.add_argument("--data", default="", metavar="DIR", help="folder above the data sets (DATASET.ROOT)")
    parser.add_argument("--out", default="output", metavar="DIR", help="folder above all runs (default: output)")
    parser.add_argument("--shots", type=int, metavar="N",
                        help="images per class, 0 for all (default: the data set's config, else 16)")  # fmt: skip
    parser.add_argument("--targets", nargs="+", default=(), metavar="DOMAIN", help="only these target domains")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="runs at a time (default: 1 with a GPU, else as many as there are cores)")  # fmt: skip
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
                        help="load a module or .py file that registers a trainer or data set; repeatable")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their state, run nothing")
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="dassl-clip task",
        description="Run a task of one method on one data set: what is finished is skipped, what is broken is redone.",
        usage="%(prog)s METHOD DATASET SEED [options] [KEY VALUE ...]",
        epilog="example: dassl-clip task GOPro icons 1 --task fewshot OPTIM.MAX_EPOCH 4",
    )
    parser.add_argument(
        "method", metavar="METHOD", help="registry name of a trainer, such as GOPro; GOPro+InMaP refines its runs"
    )
    parser.add_argument("dataset", metavar="DATASET", help="data set with a config, such as icons, or a yaml file")
    parser.add_argument("seeds", metavar="SEED", type=seeds, help="one seed, or several: 1,2,3")
    parser.add_argument("--task", nargs="+", default=(), metavar="TASK",
                        help=f"one or more of {', '.join(plan.TASKS)} (default: by the configs)")  # fmt: skip
    parser.add_argument("--config", default="", metavar="NAME_OR_FILE",
                        help="config of the method (default: the data set's own, else vit_b16)")  # fmt: skip
    parser.add_argument("--reference", default=NO_REFERENCE, metavar="METHOD[:CONFIG]",
                        help="method to run beside it for the gain, such as ZeroshotCLIP; 'none' for none")  # fmt: skip
    add_run_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a task and print its table; 1 if a run failed, 2 with one sentence for a user's error."""
    return guarded(lambda words: run_task(*split_command(build_parser(), words)), argv, GOES_ON)


def run_task(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Plan, run and print what the arguments ask for."""
    request = request_of(args, args.seeds, args.task)
    method = method_of(args.method, request, pairs, args.config)
    request = plan.with_tasks(request, method)
    methods = [method]
    if args.reference.lower() not in ("", NO_REFERENCE):
        name, _, config = args.reference.partition(":")
        other = reference.reference_method(request, method, known_trainer(name, request, config), config)
        methods = [other, method]
    return run_methods(request, methods, args.jobs, args.dry_run)


def request_of(args: argparse.Namespace, seed_list: Sequence[int], tasks: Sequence[str]) -> plan.Request:
    """The request in a command's arguments.

    Raises:
        UserError: there is no such data set.
    """
    catalogue.dataset_file(args.dataset)
    return plan.Request(
        dataset=args.dataset,
        seeds=tuple(seed_list),
        tasks=tuple(name for word in tasks for name in word.replace(",", " ").split()),
        out=args.out,
        data=args.data,
        shots=args.shots,
        targets=tuple(args.targets),
        imports=tuple(args.imports),
    )


def method_of(word: str, request: plan.Request, pairs: Sequence[str], config: str = "") -> plan.Method:
    """A method by its name on the command line: `GOPro`, `GOPro:icons_paper`, or `GOPro:icons+InMaP` for a refined one.

    Args:
        word: the name.
        request: what is asked for.
        pairs: KEY VALUE pairs, flat.
        config: config of the method where the word names none.
    """
    base, plus, refiner = word.rpartition("+")
    if not plus or not refiner.lower().startswith(tasks.REFINER.lower()):
        trainer, _, named = word.partition(":")
        named = named or config
        return plan.Method(known_trainer(trainer, request, named), named, tuple(pairs))
    method = method_of(refiner, request, pairs, config)
    return replace(method, base=method_of(base, request, pairs))


def known_trainer(name: str, request: plan.Request, config: str = "") -> str:
    """The registry name meant by a name in any case.

    A trainer without a config in `configs/` is accepted if the user brings a yaml file or a module for it.

    Raises:
        UserError: no such trainer.
    """
    names = catalogue.trainer_names()
    own = bool(request.imports) or config.endswith((".yaml", ".yml"))
    if own and name not in names:
        train.register()
        from dassl.engine import TRAINER_REGISTRY

        for module in request.imports:
            import_user_code(module)
        names = sorted(TRAINER_REGISTRY.registered_names())
    return catalogue.match_trainer(name, names)


def run_methods(request: plan.Request, methods: Sequence[plan.Method], jobs: int | None, dry_run: bool = False) -> int:
    """Run what is missing of several methods and print one table a task; the first method is the reference.

    Returns:
        0, or 1 if a run failed, was refused or was left out.
    """
    train.register()
    methods = [other for method in methods for other in (method.base, method) if other is not None]
    runs = [run for method in dict.fromkeys(methods) for run in plan.plan_runs(request, method)]
    todo = []
    for run in runs:
        state, reason = run_state(run)
        if state == "complete":
            print(f"skipped, complete: {run.name} ({run.folder})" + (f": {reason}" if reason else ""))
        elif state == "refused":
            print(f"refused: {run.name}: {reason}", file=sys.stderr)
        else:
            todo.append(run)
            if reason:
                print(f"{state}: {run.name}: {reason}")
    if dry_run:
        for run in todo:
            print(run.command)
        return 0
    if todo:
        make_folder(Path(request.out), "--out")
    failed = run_stages(todo, lambda some: run_missing(some, jobs))
    if outdated := outdated_runs(runs, todo):
        failed += run_stages(outdated, lambda some: run_missing(some, jobs))
    print_tables(runs)
    for outcome in failed:
        print(f"failed: {outcome.run.name}, log: {log_file(outcome.run)}", file=sys.stderr)
    absent = [run for run in runs if run_state(run)[0] != "complete"]
    if absent:
        print(f"{len(absent)} of {len(runs)} runs are missing from the table", file=sys.stderr)
    return 1 if absent else 0


def run_stages(todo: Sequence[plan.Run], work: Callable[[list[plan.Run]], list[pool.Outcome]]) -> list[pool.Outcome]:
    """Run what stands alone, then what another task has made by now, then what needs a run of the first.

    Args:
        todo: the runs.
        work: runs some of them, side by side; returns the failures.

    Returns:
        All failures.
    """
    first, twins = reuse.part_twins(reuse.take_over([run for run in todo if run.needs is None]))
    failed = work(first) if first else []
    left = reuse.take_over(twins)
    failed += work(left) if left else []
    ready = ready_runs(todo)
    return failed + (work(ready) if ready else [])


def outdated_runs(runs: Sequence[plan.Run], done: Sequence[plan.Run]) -> list[plan.Run]:
    """The finished runs that were made of a run that was just made again, and has learned something else."""
    folders = {run.folder for run in done}
    outdated = []
    for run in runs:
        state, reason = run_state(run) if run.needs in folders and run.folder not in folders else ("", "")
        if state == "redo":
            print(f"{state}: {run.name}: {reason}")
            outdated.append(run)
    return outdated


def ready_runs(todo: Sequence[plan.Run]) -> list[plan.Run]:
    """The runs that need another one which is finished; those whose other one is not are told."""
    second = [run for run in todo if run.needs is not None]
    for run in second:
        if not records.is_complete(run.needs):
            print(f"left out: {run.name}: it needs the run in {run.needs}, which is not finished", file=sys.stderr)
    return [run for run in second if records.is_complete(run.needs)]


def run_state(run: plan.Run) -> tuple[str, str]:
    """What a run's folder holds.

    Returns:
        State and reason: "complete" (the reason says what could not be compared, if anything); "refused" (a finished
        run of another configuration); "redo" (a broken record; a run on other images or files than are there now; what
        another configuration, or a run on other images, left half done); "resume" (what this configuration left half
        done); "new".
    """
    found = records.inspect_record(run.folder)
    if found.record is not None and found.record["config_hash"] == records.config_hash(run.cfg):
        changed, unknown = identity.changed_since(found.record, run.folder, run.cfg)
        return ("redo", changed) if changed else ("complete", unknown)
    there = read_config(run.folder)
    if found.record is not None:
        differences = records.config_differences(there, run.cfg) if there is not None else []
        what = identity.shortened(differences) or "its configuration hash is another one"
        way_out = "move it away, or choose another --out"
        return "refused", f"{run.folder} holds a finished run of another configuration ({what}); {way_out}"
    if found.state == "broken":
        return "redo", found.reason
    if other := identity.left_by_others(run.folder, run.cfg):
        return "redo", f"an unfinished run of {other} is moved aside"
    return ("resume", "resuming an unfinished run") if there is not None else ("new", "")


def prepare_folder(folder: Path, cfg: Any) -> None:
    """Move aside what must not be mixed with a new run: what another run left behind, or a broken record."""
    (folder / FAILURE_NAME).unlink(missing_ok=True)
    found = records.inspect_record(folder)
    finished = found.record is not None and identity.changed_since(found.record, folder, cfg)[0]
    if finished or identity.left_by_others(folder, cfg):
        reuse.set_aside(folder)
    elif (record := folder / records.RECORD_NAME).exists():
        record.rename(reuse.free_name(record, "broken"))


def note_failure(folder: Path, code: int, lines: Sequence[str]) -> None:
    """Leave a failed run's exit code and last lines in its folder; the next try removes them."""
    with contextlib.suppress(OSError):  # the disk that failed the run may fail this, too; its log is named anyway
        records.write_text_atomically(folder / FAILURE_NAME, "\n".join([f"exit code {code}", *lines]) + "\n")


def run_missing(runs: Sequence[plan.Run], jobs: int | None, gpus: int | None = None) -> list[pool.Outcome]:
    """Run all of `runs` in forked children; returns the failures.

    Args:
        runs: what to run.
        jobs: how many at a time; None for as many as the machine suggests.
        gpus: number of GPUs that they take in turn; None for those that are there.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1 run must go on at a time")
    if gpus is None:
        gpus = pool.count_gpus() if any(run.cfg.USE_CUDA for run in runs) else 0
    jobs = (
        min(jobs, len(runs))
        if jobs
        else pool.default_jobs(len(runs), gpus, environment.usable_cores(), pool.free_memory())
    )
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{count}, {jobs} at a time; each writes {pool.LOG_NAME} in its folder", flush=True)
    warm_up(gpus)
    reporter = Reporter(len(runs))
    try:
        outcomes = pool.run_all(runs, execute, jobs, gpus, reporter, describe)
    finally:
        reporter.close()
    failed = [outcome for outcome in outcomes if outcome.code]
    for outcome in failed:
        if outcome.code != locks.BUSY_EXIT:
            note_failure(outcome.run.folder, outcome.code, outcome.tail)
    return failed


def warm_up(gpus: int) -> None:
    """Do once in the parent what every child would do again; nothing here starts threads or touches a GPU."""
    import open_clip  # noqa: F401

    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard  # noqa: F401
    environment.environment_facts()
    if not gpus:  # the report asks the GPU driver where there is one
        train.environment_report()


def execute(run: plan.Run) -> int:
    """One run, in a child that holds the lock of its folder."""
    return execute_words(run.words, run.folder, run.cfg)


def execute_words(words: Sequence[str], folder: Path, cfg: Any) -> int:
    """One command line of `train.py` in this process, as if it had been started with it; returns its exit code."""
    prepare_folder(folder, cfg)
    sys.argv = [word for word in plan.train_program() if word != "python"] + list(words)
    return train.main(words)


def describe(outcome: pool.Outcome) -> str:
    """The line, or lines, that tell how a run ended."""
    run = outcome.run
    record = records.read_record(run.folder)
    if outcome.code == 0 and record is not None:
        split = "test" if "test" in record["metrics"] else next(iter(record["metrics"]))
        return f"{run.name}: accuracy {record['metrics'][split]['accuracy']:.1f} %, {outcome.seconds:.0f} s"
    if outcome.code == 0:
        outcome.code, outcome.tail = 1, ["the run ended without an error, but wrote no complete record.json"]
    lines = "".join(f"\n    {line}" for line in outcome.tail)
    return f"FAILED (exit code {outcome.code}): {run.name}; log: {log_file(run)}{lines}\n   "


def log_file(run: plan.Run) -> Path:
    """The log that a run wrote last."""
    logs = sorted(run.folder.glob(f"{pool.LOG_NAME}*"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else run.folder / pool.LOG_NAME


def print_tables(runs: Sequence[plan.Run]) -> None:
    """One table a task from the runs' records: target domains as columns, gains over the first method."""
    for name in dict.fromkeys(run.task for run in runs):
        made = tables_of([run for run in runs if run.task == name])
        for table in made:
            print(f"\n{table.render()}")
        if not made:
            print(f"\n{name}: no finished run")


def tables_of(
    runs: Sequence[plan.Run], further: bool = True, names: Mapping[tables.Row, str] = MappingProxyType({})
) -> list[tables.Table]:
    """The tables of the runs of one task; the first run's row is the reference.

    Args:
        runs: of one task.
        further: with a table of the further readings too.
        names: names of rows that were given one.
    """
    columns = list(dict.fromkeys(run.target for run in runs))
    seed_list = sorted({run.seed for run in runs})
    rows = list(dict.fromkeys(tables.named(run.row, names) for run in runs))
    usable = [run for run in runs if run_state(run)[0] == "complete"]
    split = "val" if runs[0].cfg.TEST.SPLIT == "val" else "test"
    groups = tables.group_records((records.read_record(run.folder) for run in usable), split)
    groups = [group.renamed(names) for group in groups]
    made = []
    for group in groups:
        here = rows if len(groups) == 1 else [row for row in rows if row in group.runs]
        reference = rows[0].label if len(rows) > 1 and rows[0] in group.runs else ""
        made.append(tables.method_table(group, reference, here, columns, seed_list))
    return made + (tables.extra_test_tables(groups, rows, columns, seed_list) if further else [])
