"""Tables of what has been run: `dassl-clip table output/fewshot --reference ZeroshotCLIP`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dassl_clip.commands.arguments import Parser
from dassl_clip.commands.errors import UserError, report, suggestion
from dassl_clip.results import readings, records, tables


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="dassl-clip table",
        description="Methods by target domains, mean and sample standard deviation over seeds, from the records alone.",
        epilog="example: dassl-clip table output --format markdown --reference ZeroshotCLIP",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or any folders above them")
    parser.add_argument("--format", choices=sorted(tables.FORMATS), default="text", help="default: text")
    parser.add_argument("--reference", default="", metavar="ROW", help="method, or 'Method (config)', for gains")
    parser.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="only these methods, in this order")
    parser.add_argument("--split", default="test", help="split whose metrics are shown (default: test)")
    parser.add_argument("--per-method", action="store_true", help="one table a method, with a column a seed")
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 2 with one sentence where there is nothing to print."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser().parse_args(argv)
        print("\n\n".join(table.render(args.format) for table in make_tables(args)))
    except Exception as error:
        return report(error, "--debug" in argv)
    return 0


def make_tables(args: argparse.Namespace) -> list[tables.Table]:
    """The tables that the arguments ask for.

    Raises:
        UserError: no folder holds a usable record, or a row that is asked for does not exist.
    """
    found = {item.folder.resolve(): item for folder in args.folders for item in records.find_records(folder)}
    broken = [item for item in found.values() if item.record is None]
    groups = tables.group_records((item.record for item in found.values() if item.record is not None), args.split)
    if not groups:
        reasons = "".join(f"; {item.folder}: {item.reason}" for item in broken)
        raise UserError(f"no finished run with {args.split} images below {', '.join(args.folders)}{reasons}")
    made = []
    for group in groups:
        rows = _rows(args.rows, group, groups)
        reference = args.reference if any(args.reference in (row.method, row.label) for row in group.rows) else ""
        if args.per_method:
            made += [tables.target_table(group, row) for row in rows]
        elif rows:
            made.append(tables.method_table(group, reference, rows if args.rows else None))
            made += readings.reading_tables([group], rows if args.rows else None)
    if args.reference:
        labels = sorted({name for group in groups for row in group.rows for name in (row.method, row.label)})
        if args.reference not in labels:
            raise UserError(f"--reference: no row '{args.reference}'.{suggestion(args.reference, labels)}")
    made[-1].below += [f"broken: {item.folder}: {item.reason}" for item in broken]
    return made


def _rows(asked: Sequence[str], group: tables.Group, groups: Sequence[tables.Group]) -> list[tables.Row]:
    """The rows of a group that were asked for; all of them if none was."""
    labels = sorted({name for other in groups for row in other.rows for name in (row.method, row.label)})
    for name in asked:
        if name not in labels:
            raise UserError(
                f"--rows: no row '{name}'.{suggestion(name, labels)} The records hold: {', '.join(labels)}."
            )
    return [row for name in asked for row in group.rows if name in (row.method, row.label)] if asked else group.rows
