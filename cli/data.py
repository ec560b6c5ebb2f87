"""The data sets on the disk: `dassl-clip data list | verify | inspect | links`.

`verify` says whether a folder holds a data set, in which layout, and what is missing; `inspect` draws a sheet of
images with the prompts they will get; `links` prints where data sets are published. Nothing is downloaded unless asked.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence

from dassl_clip.cli.arguments import Parser
from dassl_clip.engine.config import split_pairs
from dassl_clip.engine.errors import guarded

SINGLE_VALUE_FLAGS = ("--root", "--jobs", "--seed", "--out", "--images", "--templates", "--make-split")
INSPECT_TEMPLATES = "single"


def build_parser() -> argparse.ArgumentParser:
    """The arguments of all actions; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="dassl-clip data",
        description="List, verify and look at data sets, and print where they are published.",
        epilog="example: dassl-clip data verify pacs --root ~/data",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", default="", metavar="DIR", help="folder above the data sets, or the data set's own")
    shared.add_argument("--debug", action="store_true", help="tracebacks for every error")
    actions.add_parser("list", parents=[shared], help="the data sets that are known, and which are there",
                       epilog="example: dassl-clip data list --root ~/data")  # fmt: skip

    verify = actions.add_parser(
        "verify",
        parents=[shared],
        help="compare a folder with what is published",
        usage="%(prog)s NAME --root DIR [options] [KEY VALUE ...]",
        description="Exit code 0: the folder fits; 1: it can be used, with warnings; 2: it cannot be used as it is.",
        epilog="example: dassl-clip data verify pacs --root ~/data --decode",
    )
    verify.add_argument("name", metavar="NAME", help="data set, such as pacs")
    verify.add_argument("--classes", action="store_true", help="the number of images of every class")
    verify.add_argument("--decode", action="store_true", help="decode every image")
    verify.add_argument("--duplicates", action="store_true", help="look for files that are copies of each other")
    verify.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="threads that decode")
    verify.add_argument("--make-split", nargs="?", const="", metavar="FILE",
                        help="write a split of your own where the published file is missing")  # fmt: skip
    verify.add_argument("--seed", type=int, default=1, metavar="N", help="of --make-split (default: 1)")
    verify.set_defaults(run="data_verify")

    inspect = actions.add_parser(
        "inspect",
        parents=[shared],
        help="a sheet of images with the prompts they will get, and the order of the classes",
        usage="%(prog)s NAME --root DIR [options] [KEY VALUE ...]",
        epilog="example: dassl-clip data inspect icons --out icons.png",
    )
    inspect.add_argument("name", metavar="NAME", help="data set, such as pacs")
    inspect.add_argument("--out", default="", metavar="FILE", help="the sheet (default: NAME.png)")
    inspect.add_argument("--images", type=int, default=6, metavar="N", help="images a domain or part (default: 6)")
    inspect.add_argument("--seed", type=int, default=1, metavar="N", help="which images (default: 1)")
    inspect.add_argument("--templates", default=INSPECT_TEMPLATES, metavar="NAME",
                         help="set of templates, or one with {} (default: single; also coop, clip, ...)")  # fmt: skip
    inspect.set_defaults(run="data_inspect")

    links = actions.add_parser("links", parents=[shared], help="where data sets are published, sizes, terms",
                               epilog="example: dassl-clip data links pacs vlcs")  # fmt: skip
    links.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    links.add_argument("--download", action="store_true",
                       help="fetch what lies at a plain address into --root, check its sum, and unpack it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the action says; 2 with one sentence for a user's error."""
    return guarded(run, argv)


def run(argv: list[str]) -> int:
    """Do what the action says."""
    words, pairs = split_pairs(argv, SINGLE_VALUE_FLAGS)
    args = build_parser().parse_args(words)
    return importlib.import_module(f"dassl_clip.cli.data_{args.action}").run(args, pairs)
