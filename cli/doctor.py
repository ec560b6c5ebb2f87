"""What of an installation works: `dassl-clip doctor`, one line a check, `ok`, `warn` or `fail`, with the fix.

A check never ends the command: what it stumbles over is its finding. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_clip.cli.arguments import Parser
from dassl_clip.engine.errors import guarded, sentence

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        level: `ok`, `warn` (something optional is missing, or will hurt later) or `fail` (runs cannot work).
        what: what was found.
        fix: what to do about it, "" for nothing.
    """

    level: str
    what: str
    fix: str = ""


Check = Callable[[argparse.Namespace], Iterable[Finding]]


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="dassl-clip doctor",
        description="Check toolbox, torch, device, models, data and disk. Exit code 1 if something fails, else 0.",
        epilog="example: dassl-clip doctor --data ~/data --backbone ViT-B/16",
    )
    parser.add_argument("--data", default="", metavar="DIR", help="folder above the data sets to look through")
    parser.add_argument("--out", default="output", metavar="DIR", help="folder that runs shall go to (default: output)")
    parser.add_argument("--backbone", nargs="+", default=("ViT-B/16",), metavar="NAME",
                        help="whose weights to look for (default: ViT-B/16)")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; 1 if one of them is a failure, 2 for arguments that do not exist."""
    return guarded(lambda words: run(build_parser().parse_args(words)), argv)


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    from dassl_clip.cli.doctor_checks import CHECKS

    levels = []
    for finding in examine(args, CHECKS):
        levels.append(finding.level)
        print(line(finding), flush=True)
    print(f"{levels.count(OK)} ok, {levels.count(WARN)} to know, {levels.count(FAIL)} to mend")
    return 1 if FAIL in levels else 0


def examine(args: argparse.Namespace, checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of all checks, one after another."""
    for check in checks:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check(args)
        except Exception as error:
            text = sentence(error) or type(error).__name__
            yield Finding(FAIL, f"{name}: {type(error).__name__}: {text}", "mend what this names, then ask again")


def line(finding: Finding) -> str:
    """`fail  no Dassl toolbox  ->  pip install ./toolbox`."""
    fix = f"  ->  {finding.fix}" if finding.fix else ""
    return f"{finding.level:<5} {finding.what}{fix}"


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above a path that exists."""
    path = path.expanduser().absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
