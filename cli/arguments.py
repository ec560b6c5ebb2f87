"""What the argument parsers of all commands share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

from dassl_clip.engine.config import split_pairs
from dassl_clip.engine.errors import USAGE_EXIT
from dassl_clip.results.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose refusals are one sentence with the flag that was meant."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, **settings)

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
        """Flags that take exactly one value."""
        return [flag for action in self._actions if action.nargs is None for flag in action.option_strings]


def split_command(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line whose KEY VALUE pairs may stand anywhere among the flags."""
    words, pairs = split_pairs(argv, parser.single_value_flags())
    return parser.parse_args(words), pairs


def seeds(text: str) -> tuple[int, ...]:
    """`1` or `1,2,3` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, or several with commas: 1,2,3") from None
