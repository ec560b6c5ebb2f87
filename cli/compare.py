"""Several methods beside each other: `dassl-clip compare icons` runs what is missing and prints the tables."""

from __future__ import annotations

import argparse

from dassl_clip.cli import task
from dassl_clip.cli.arguments import Parser, add_seeds, command
from dassl_clip.engine.errors import RESUMES
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import methods, plan


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip compare",
        description="Run what is missing of several methods on one data set, and print one table per task.",
        usage="%(prog)s DATASET [--seeds 1 2 3] [options] [KEY VALUE ...]",
        epilog="example: dassl-clip compare icons --seeds 1 2 3 --methods REFERENCE METHOD:icons METHOD:icons_paper",
    )
    parser.add_argument("dataset", metavar="DATASET", help="data set with a config, such as icons, or a yaml file")
    add_seeds(parser, "--seeds", default=(1,), metavar="N", help="1 2 3 or 1,2,3 (default: 1)")
    parser.add_argument("--methods", nargs="+", default=(), metavar="TRAINER[:CONFIG][+REFINER]",
                        help="rows of the table, the first is the reference (default: every trainer with a config for "
                        "the data set, and the variants of those configs)")  # fmt: skip
    parser.add_argument("--tasks", "--task", nargs="+", default=(), metavar="TASK", help="default: the data set's own")
    task.add_run_arguments(parser)
    task.add_printing(parser)
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Run what is missing of the methods, and print the tables."""
    printing = task.printing_of(args)
    request = task.request_of(args, args.dataset, args.tasks)
    chosen = [methods.method_of(word, pairs, "", request.imports) for word in args.methods]
    request = plan.with_tasks(request, methods.Method(methods.reference_name(), "", pairs))
    known = () if chosen else methods.all_methods(request.dataset, request.tasks, pairs)
    chosen = chosen or [method for method in known if plan.has_place(request, method)]
    return task.run_methods(request, chosen, args.jobs, args.dry_run, printing)


main = command(build_parser, run, RESUMES)
