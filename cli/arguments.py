"""What the argument parsers of all commands share."""

from __future__ import annotations

import argparse
import glob
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.engine.config import TOP_KEYS
from dassl_clip.engine.errors import USAGE_EXIT, guarded
from dassl_clip.engine.overrides import Pairs
from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean
from dassl_clip.results.files import no_file
from dassl_clip.results.image_rows import file_of

FORMATS = (".csv", ".json")  # of files with answers or words
_KEY = re.compile(rf"({'|'.join(TOP_KEYS)}|[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)+)(=.*)?", re.DOTALL)


class _HelpFormatter(argparse.HelpFormatter):
    """Leaves examples as they are, each on a line of its own; other texts are wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example") else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser with `--debug` and without abbreviations; its refusals are one line with the flag meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)
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
            args, *pairs = split_command(parser, words)
        else:
            args, *pairs = (parser.parse_args(words),)
        check_files(args)
        return run(args, *pairs)

    def main(argv: Sequence[str] | None = None) -> int:
        return guarded(work, argv, interrupted)

    return main


def add_import(parser: argparse._ActionsContainer, what: str = "the run's trainer") -> None:
    """The flag that loads a user's own code."""
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
                        help=f"load a module or .py file that registers {what}; repeatable")  # fmt: skip


def check_files(args: argparse.Namespace) -> None:
    """Refuse files and runs that arguments name and that are not there, before anything is loaded.

    Raises:
        UserError: what `--import`, `--weights`, RUN or IMAGE_OR_FOLDER names does not exist.
    """
    files = [("--import", name) for name in getattr(args, "imports", ()) if name.endswith(".py")]
    files += [("--weights", args.weights)] if getattr(args, "weights", None) else []
    for flag, name in files:
        if not Path(name).expanduser().is_file():
            raise MissingFileError(f"{flag}: {no_file(name)}")
    advice = "give the folder of a finished run (it holds record.json and config.yaml), or a file made by export"
    images = getattr(args, "images", ())  # of other commands, how many
    for name in images if isinstance(images, list) else ():
        there = Path(file_of(name)).expanduser().exists()  # of a row, the file around it
        if not there and not glob.has_magic(name):
            raise MissingFileError(f"there is no file or folder {name}")
    if getattr(args, "run", None) and not Path(args.run).expanduser().exists():
        raise MissingFileError(f"there is no folder or file {args.run}; {advice}")


class KeyFlag(argparse.Action):
    """A flag that stands beside a key of the configuration: both may be given, but not with different values.

    Args:
        key: the key.
        becomes_pair: the flag is nothing but short for the key, and a command receives it among the pairs.
    """

    def __init__(self, *args: Any, key: str, becomes_pair: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.key, self.becomes_pair = key, becomes_pair

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)


def add_data(parser: argparse._ActionsContainer, text: str, name: str = "data") -> None:
    """The flag of the folder above the data sets, under both of its names; help and errors show the first."""
    parser.add_argument(f"--{name}", *{"--data", "--root"} - {f"--{name}"}, dest=name, default="", metavar="DIR",
                        action=KeyFlag, key="DATASET.ROOT", help=text)  # fmt: skip


def add_model(parser: argparse._ActionsContainer, default: str = "that of the config") -> None:
    """The flags of the frozen model, short for two keys."""
    parser.add_argument("--backbone", metavar="NAME", action=KeyFlag, key="MODEL.BACKBONE.NAME", becomes_pair=True,
                        help=f"the model, short for MODEL.BACKBONE.NAME (default: {default})")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", action=KeyFlag, key="MODEL.BACKBONE.WEIGHTS", becomes_pair=True,
                        help="file with its weights, short for MODEL.BACKBONE.WEIGHTS")  # fmt: skip


def add_seeds(parser: argparse._ActionsContainer, name: str, **settings: Any) -> None:
    """The argument of one seed or several: `1 2 3`, `1,2,3`."""
    parser.add_argument(name, nargs="+", type=seeds, action=_Seeds, **settings)


class _Seeds(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(dict.fromkeys(itertools.chain.from_iterable(values))))


def check_format(out: str) -> None:
    """Refuse a name of a file with words or answers that ends in no known format."""
    if Path(out).suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: the ending says the format, and {' and '.join(FORMATS)} are known")


def split_pairs(words: Sequence[str], single_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags from pairs, `KEY VALUE` or `KEY=VALUE`, wherever the pairs stand.

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
    only_pairs = False  # after `--`, where any word is a key
    while rest:
        word = rest.pop(0)
        found = _KEY.fullmatch(word)
        if word == "--" and not only_pairs:
            only_pairs = True
        elif word in single_flags and not only_pairs:
            flags += [word, *rest[:1]]
            del rest[:1]
        elif found is None and not only_pairs:
            flags.append(word)
        elif "=" in word:
            key, _, value = word.partition("=")
            pairs += [key, value]
        elif rest:
            value = rest.pop(0)
            pairs += [word, rest.pop(0) if value == "=" and rest else value]
        else:
            raise UserError(f"the key {word} has no value: write {word} VALUE or {word}=VALUE")
    return flags, pairs


def split_command(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, Pairs]:
    """Parse a command line whose pairs may stand anywhere among the flags; those of `add_model` become pairs.

    Raises:
        UserError: a flag and its key ask for different things, or there is no such file of weights.
    """
    words, flat = split_pairs(argv, parser.single_value_flags())
    args, pairs = parser.parse_args(words), tuple(zip(flat[::2], flat[1::2]))
    for action in (action for one in (parser, *dict(subparsers(parser)).values()) for action in one._actions):
        value = getattr(args, action.dest, None) if isinstance(action, KeyFlag) else None
        if value is None or value == action.default:
            continue
        given = dict(pairs).get(action.key, str(value))
        if given != str(value):
            flag = action.option_strings[0]
            raise UserError(f"{flag} {value} and {action.key} {given} ask for different things: give one of the two")
        if action.becomes_pair and action.key not in dict(pairs):
            pairs = (*pairs, (action.key, str(value)))
    return args, pairs


def seeds(text: str) -> tuple[int, ...]:
    """`1` or `1,2,3` as numbers."""
    try:
        numbers = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError:
        problem = f"'{text}' should be a whole number, or several: 1 2 3 or 1,2,3"
        raise argparse.ArgumentTypeError(problem) from None
    return numbers


def refuse_among_images(file: str | Path, flag: str, images: Iterable[str]) -> None:
    """Refuse to write a picture over an image, or into a folder of images, where the next run would read it as one.

    Args:
        file: what would be written.
        flag: that names it.
        images: files and folders that are read.

    Raises:
        UserError: naming the image or the folder.
    """
    written = Path(file).expanduser().resolve()
    for name in images:
        place = Path(name).expanduser().resolve()
        if written != place and not (place.is_dir() and place in written.parents):
            continue
        if written.exists():
            raise UserError(f"{flag} {file} is there already, among the images, and would be lost; give another file")
        raise UserError(
            f"{flag} {file} lies among the images of {name}, and the next run would read it as one of them; give a "
            "place outside"
        )
