"""What the argument parsers of all commands share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.engine.config import TOP_KEYS
from dassl_clip.engine.errors import USAGE_EXIT, guarded
from dassl_clip.results.errors import UserError, did_you_mean

FORMATS = (".csv", ".json")  # of files with answers or words
_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)+")


class Parser(argparse.ArgumentParser):
    """An argument parser with `--debug` and without abbreviations; its refusals are one line with the flag meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        if self.add_help:
            self.add_argument("--debug", action="store_true", help="tracebacks for every error")

    def error(self, message: str) -> None:
        """Print what is wrong to stderr and exit with code 2."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        hint = did_you_mean(unknown[1], flags) if unknown else ""
        self.exit(USAGE_EXIT, f"error: {message}.{hint} `{self.prog} --help` lists the arguments.\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> object:
        """The value of a word; no number that a program can do nothing with."""
        value = super()._get_value(action, arg_string)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentError(action, f"{arg_string:.40} is not a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise argparse.ArgumentError(action, f"{arg_string:.40} is not a number of 64 bits")
        return value

    def single_value_flags(self) -> list[str]:
        """Flags of the parser and its sub-commands that take no more than one value."""
        parsers = [self, *(parser for _, parser in subparsers(self))]
        actions = [action for parser in parsers for action in parser._actions if action.nargs in (None, "?")]
        return [flag for action in actions for flag in action.option_strings]


def subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Name and parser of each sub-command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def command(
    build_parser: Callable[[], Parser], run: Callable[..., int], interrupted: str = "interrupted"
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a command: takes the command line (None: the program's own), returns `run`'s or an error's code.

    Args:
        build_parser: makes its parser; a usage with KEY VALUE says that it takes pairs.
        run: takes the parsed arguments, and the pairs where the command takes some.
        interrupted: what Ctrl-C leaves behind.
    """

    def work(words: list[str]) -> int:
        parser = build_parser()
        if any("KEY VALUE" in (one.usage or "") for one in (parser, *dict(subparsers(parser)).values())):
            return run(*split_command(parser, words))
        return run(parser.parse_args(words))

    def main(argv: Sequence[str] | None = None) -> int:
        return guarded(work, argv, interrupted)

    return main


def add_import(parser: Parser, what: str = "the run's trainer") -> None:
    """The flag that loads a user's own code."""
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
                        help=f"load a module or .py file that registers {what}; repeatable")  # fmt: skip


def check_format(out: str) -> None:
    """Refuse a name of a file with words or answers that ends in no known format."""
    if Path(out).suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: the ending says the format, and {' and '.join(FORMATS)} are known")


def split_pairs(words: Sequence[str], single_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags from KEY VALUE pairs, wherever the pairs stand.

    A key ends the list of a flag that takes several values, so `--target-domains a b OPTIM.LR 0.1` means what it says.

    Args:
        words: the command line.
        single_flags: flags that take exactly one value; that value is never read as a key.

    Returns:
        The words for the argument parser, and the pairs as a flat list.

    Raises:
        UserError: a key without a value.
    """
    flags: list[str] = []
    pairs: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            pairs += rest
            break
        if word in single_flags:
            flags += [word, *rest[:1]]
            del rest[:1]
        elif word in TOP_KEYS or _DOTTED_KEY.fullmatch(word):
            if not rest:
                raise UserError(f"the key {word} has no value: write {word} VALUE")
            pairs += [word, rest.pop(0)]
        else:
            flags.append(word)
    if len(pairs) % 2:
        raise UserError(f"KEY VALUE pairs expected, but {' '.join(pairs)} has an odd number of words")
    return flags, pairs


def split_command(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[tuple[str, str], ...]]:
    """Parse a command line whose KEY VALUE pairs may stand anywhere among the flags."""
    words, pairs = split_pairs(argv, parser.single_value_flags())
    return parser.parse_args(words), tuple(zip(pairs[::2], pairs[1::2]))


def seeds(text: str) -> tuple[int, ...]:
    """`1` or `1,2,3` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, or several with commas: 1,2,3") from None
