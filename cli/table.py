"""Tables from the records alone: of a sweep beside what was published, or of all that lies below some folders.

`dassl-clip table clap-zeroshot` prints ours, published and difference, and the command that fills each missing cell;
`dassl-clip table output/fewshot --reference METHOD` prints methods by target domains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.cli import task
from dassl_clip.cli.arguments import Parser, add_seeds, command
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import state, sweeps
from dassl_clip.experiments import tables as run_tables
from dassl_clip.experiments.methods import reference_name
from dassl_clip.results import published as sheets
from dassl_clip.results import records, rendering, tables, trust
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import check_rows, group_records, relabelled
from dassl_clip.results.scenarios import group_tables

OUTSIDE_EXIT = 1


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip table",
        usage="%(prog)s NAME_OR_FOLDER [...] [options] [KEY VALUE ...]",
        description="Tables from the records alone: mean and sample standard deviation over seeds, beside what was "
        "published where NAME is a sweep.",
        epilog="examples:\n  dassl-clip table clap-zeroshot\n  dassl-clip table output --reference METHOD",
    )
    parser.add_argument("what", nargs="+", metavar="NAME_OR_FOLDER",
                        help=f"a sweep ({', '.join(sweeps.sweep_names())}, or a yaml file), or run folders, or any "
                        "folders above them")  # fmt: skip
    parser.add_argument("--format", choices=rendering.FORMATS, default="text", help="default: text")
    parser.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="only these rows, in this order")
    task.add_printing(parser)
    of_sweep = parser.add_argument_group("of a sweep")
    checked = "exit with 1 if a cell is further from the published number than its tolerance, 2 if no cell has both"
    of_sweep.add_argument("--check", action="store_true", help=checked)
    add_seeds(of_sweep, "--seeds", default=(), metavar="N", help="1 2 3 or 1,2,3 (default: the sweep's own)")
    of_sweep.add_argument("--datasets", nargs="+", default=(), metavar="NAME", help="only these data sets")
    task.add_rule(of_sweep)
    task.add_run_arguments(of_sweep)
    of_folders = parser.add_argument_group("of folders")
    of_folders.add_argument("--reference", default="", metavar="ROW", help="method, or 'Method (config)', for gains")
    of_folders.add_argument("--split", default="test", help="split whose metrics are shown (default: test)")
    of_folders.add_argument("--per-method", action="store_true", help="one table a method, with a column a seed")
    of_folders.add_argument("--per-domain", action="store_true",
                            help="of batches, streams and orders: the tables of each domain too")  # fmt: skip
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    args.columns = task.printing_of(args).columns
    args.spread = rendering.SPREADS.get(args.spread)
    if is_sweep(args.what):
        return print_sweep(args, pairs)
    if args.check:
        raise UserError(f"--check needs published numbers, so it is for sweeps: {', '.join(sweeps.sweep_names())}")
    print_tables(make_tables(args), args)
    return 0


def print_tables(made: Sequence[rendering.Table], args: argparse.Namespace) -> None:
    """Print tables in the format, and with the spread, that was asked for."""
    shown = [table.with_spread(args.spread) for table in made] if args.spread else made
    print(rendering.render_tables(shown, args.format, not args.drop_header))


def is_sweep(words: Sequence[str]) -> bool:
    """Whether the words name a sweep and no folder."""
    path = Path(name := words[0])
    known = name.endswith((".yaml", ".yml")) or name in sweeps.sweep_names()
    return len(words) == 1 and not path.is_dir() and (known or ("/" not in name and not path.exists()))


def print_sweep(args: argparse.Namespace, pairs: Pairs) -> int:
    """The table of a sweep; with `--check`, `OUTSIDE_EXIT` if a cell is outside its tolerance."""
    named = sweeps.read_sweep(args.what[0])
    entries = sweeps.expand(named, task.request_of(args), pairs, args.rows, args.datasets, args.rule)
    if args.dry_run:
        for run in sweeps.runs_of(entries):
            print(f"{state.state_of(run).name}: {run.command}")
        return 0
    command_line = task.sweep_command("sweep", args.what, args, pairs)
    if not named.published and args.check:
        raise UserError(f"--check: the sweep {named.name} has no published table to check against")
    state_now = run_tables.progress(entries, command_line) or f"no record of {named.name} holds an accuracy of a target"
    nothing = f"{state_now}; so there is no table"
    searched = any(entry.is_trial and entry.searches for entry in entries)
    if not named.published and not searched:
        made = run_tables.method_tables(named, entries, args.columns, args.label)
        if not made:
            raise UserError(nothing)
        print_progress(args, entries, command_line)
        print_tables(made, args)
        return 0
    if args.label:
        raise UserError(f"--label: the rows of {named.name} have the names of its file; leave it out")
    if args.columns != trust.DEFAULT_COLUMNS:
        raise UserError(f"--columns: the table {named.name} is of accuracies; leave it out, or name folders")
    chosen = run_tables.Choice(bool(args.rows), bool(args.datasets), bool(args.targets))
    sheet = run_tables.make_sheet(named, entries, chosen, args.spread)
    if not sheet.records():
        raise UserError(nothing)
    print_progress(args, entries, command_line)
    print(sheet.render(args.format, not args.drop_header))
    return check_sheet(sheet, args.what[0]) if args.check else 0


def print_progress(args: argparse.Namespace, entries: Sequence[sweeps.Entry], command_line: str) -> None:
    """Where cells are missing, the first line: how many there are, and the command that fills them.

    It goes to stderr where stdout is read by a program.
    """
    if missing := run_tables.progress(entries, command_line):
        print(f"{missing}\n", file=sys.stdout if args.format in ("text", "markdown") else sys.stderr)


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
        text = f"--check: 0 of {published} published cells checked, since no run of these is finished here"
        raise UserError(f"{text}: dassl-clip sweep {name}")
    print(f"{checked} of {published} published cells checked, {len(outside)} outside their tolerance", file=sys.stderr)
    return OUTSIDE_EXIT if outside else 0


def make_tables(args: argparse.Namespace) -> list[rendering.Table]:
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
    made, groups = [], relabelled(groups, args.label)
    check_rows("--rows", args.rows, groups)
    check_rows("--reference", [args.reference] * bool(args.reference), groups)
    reference = args.reference or (reference_name() if {trust.INTERVAL, trust.LOSING} & set(args.columns) else "")
    if args.per_method and (summaries := [name for name in args.columns if name not in trust.METRICS]):
        raise UserError(f"--per-method has a line for each domain, and no column {' or '.join(summaries)}")
    shown = args.columns
    if shown == trust.DEFAULT_COLUMNS and args.format == "text":  # other formats are for programs: one table a group
        shown = (*shown, trust.COST)
    for group in groups:
        chosen = [row for name in args.rows for row in group.rows if name in row.names] if args.rows else None
        if args.per_method:
            each = group.rows if chosen is None else chosen
            made += [tables.target_table(group, row, metric) for row in each for metric in args.columns]
        elif chosen != []:
            made += group_tables(group, reference, chosen, shown=shown, per_domain=args.per_domain)
    made[-1].below += [f"{item.state}: {item.folder}: {item.reason}" for item in broken]
    return made


main = command(build_parser, run)
