"""Tables from the records alone: of a sweep beside what was published, or of all that lies below some folders.

`dassl-clip table clap-zeroshot` prints ours, published and difference, and the command that fills each missing cell;
`dassl-clip table output/fewshot --reference METHOD` prints methods by target domains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.cli import sweep, task
from dassl_clip.cli.arguments import Parser, split_command
from dassl_clip.engine.errors import guarded
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import state, sweeps
from dassl_clip.experiments import tables as run_tables
from dassl_clip.results import published as sheets
from dassl_clip.results import records, tables
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.groups import Group, Row, group_records

OUTSIDE_EXIT = 1


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="dassl-clip table",
        description="Tables from the records alone: mean and sample standard deviation over seeds, beside what was "
        "published where NAME is a sweep.",
        epilog="examples: dassl-clip table clap-zeroshot; dassl-clip table output --reference METHOD",
    )
    parser.add_argument("what", nargs="+", metavar="NAME_OR_FOLDER",
                        help=f"a sweep ({', '.join(sweeps.sweep_names())}, or a yaml file), or run folders, or any "
                        "folders above them")  # fmt: skip
    parser.add_argument("--format", choices=tables.FORMATS, default="text", help="default: text")
    parser.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="only these rows, in this order")
    of_sweep = parser.add_argument_group("of a sweep")
    checked = "exit with 1 if a cell is further from the published number than its tolerance, 2 if no cell has both"
    of_sweep.add_argument("--check", action="store_true", help=checked)
    of_sweep.add_argument("--seeds", nargs="+", type=int, default=(), metavar="N", help="default: the sweep's own")
    task.add_run_arguments(of_sweep)
    of_folders = parser.add_argument_group("of folders")
    of_folders.add_argument("--reference", default="", metavar="ROW", help="method, or 'Method (config)', for gains")
    of_folders.add_argument("--split", default="test", help="split whose metrics are shown (default: test)")
    of_folders.add_argument("--per-method", action="store_true", help="one table a method, with a column a seed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if a check fails, 2 with one sentence where there is nothing to print or to check."""
    return guarded(lambda words: run(*split_command(build_parser(), words)), argv)


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Print the tables that the arguments ask for."""
    if is_sweep(args.what):
        return print_sweep(args, pairs)
    if args.check:
        raise UserError(f"--check needs published numbers, so it is for sweeps: {', '.join(sweeps.sweep_names())}")
    print("\n\n".join(table.render(args.format) for table in make_tables(args)))
    return 0


def is_sweep(words: Sequence[str]) -> bool:
    """Whether the words name a sweep and no folder."""
    name = words[0]
    return len(words) == 1 and not Path(name).is_dir() and ("/" not in name or name.endswith((".yaml", ".yml")))


def print_sweep(args: argparse.Namespace, pairs: Pairs) -> int:
    """The table of a sweep; with `--check`, `OUTSIDE_EXIT` if a cell is outside its tolerance."""
    named = sweeps.read_sweep(args.what[0])
    entries = sweeps.expand(named, sweep.sweep_request(args), pairs, args.rows)
    if args.dry_run:
        for run in sweeps.runs_of(entries):
            print(f"{state.state_of(run).name}: {run.command}")
        return 0
    if not named.published:
        if args.check:
            raise UserError(f"--check: the sweep {named.name} has no published table to check against")
        made = run_tables.method_tables(named, entries)
        if not made:
            raise UserError(f"no run of {named.name} is finished in {args.out}: dassl-clip sweep {args.what[0]}")
        print("\n\n".join(table.render(args.format) for table in made))
        return 0
    if args.targets:
        raise UserError(f"--targets: {named.name} stands beside means over all targets; leave it out")
    sheet = run_tables.make_sheet(named, entries)
    print(sheet.render(args.format))
    return check_sheet(sheet, args.what[0]) if args.check else 0


def check_sheet(sheet: sheets.Sheet, name: str) -> int:
    """Tell which cells are outside their tolerance, and how many were checked; returns the exit code.

    Raises:
        UserError: no cell could be checked.
    """
    checked, published = sheet.checked()
    outside = sheet.outside()
    for line in outside:
        print(f"outside: {line}", file=sys.stderr)
    if not checked:
        raise UserError(
            f"--check: 0 of {published} published cells checked, since no run of these is finished here: "
            f"dassl-clip sweep {name}"
        )
    print(f"{checked} of {published} published cells checked, {len(outside)} outside their tolerance", file=sys.stderr)
    return OUTSIDE_EXIT if outside else 0


def make_tables(args: argparse.Namespace) -> list[tables.Table]:
    """The tables that the arguments ask for.

    Raises:
        UserError: no folder holds a usable record, or a row that is asked for does not exist.
    """
    found = {item.folder.resolve(): item for folder in args.what for item in records.find_records(folder)}
    broken = [item for item in found.values() if item.record is None]
    usable = [item.record | {"folder": str(item.folder)} for item in found.values() if item.record is not None]
    groups = group_records(usable, args.split)
    if not groups:
        reasons = "".join(f"; {item.folder}: {item.reason}" for item in broken)
        raise UserError(f"no finished run with {args.split} images below {', '.join(args.what)}{reasons}")
    made = []
    for group in groups:
        rows = _rows(args.rows, group, groups)
        reference = args.reference if any(args.reference in (row.method, row.label) for row in group.rows) else ""
        if args.per_method:
            made += [tables.target_table(group, row) for row in rows]
        elif rows:
            made.append(tables.method_table(group, reference, rows if args.rows else None))
            made += tables.extra_test_tables([group], rows if args.rows else None)
    if args.reference:
        labels = sorted({name for group in groups for row in group.rows for name in (row.method, row.label)})
        if args.reference not in labels:
            raise UserError(f"--reference: no row '{args.reference}'.{did_you_mean(args.reference, labels)}")
    made[-1].below += [f"{item.state}: {item.folder}: {item.reason}" for item in broken]
    return made


def _rows(asked: Sequence[str], group: Group, groups: Sequence[Group]) -> list[Row]:
    """The rows of a group that were asked for; all of them if none was."""
    labels = sorted({name for other in groups for row in other.rows for name in (row.method, row.label)})
    for name in asked:
        if name not in labels:
            raise UserError(
                f"--rows: no row '{name}'.{did_you_mean(name, labels)} The records hold: {', '.join(labels)}."
            )
    return [row for name in asked for row in group.rows if name in (row.method, row.label)] if asked else group.rows
