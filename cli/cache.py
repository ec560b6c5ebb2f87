"""Cached features on the disk: `dassl-clip cache ls` shows them, `dassl-clip cache rm` removes some or all.

Everything in there can be made again. Only files that this project wrote are ever touched: arrays and their facts in
the folder `features`, named by a hash, and what an interrupted write left behind.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_clip.cli.arguments import Parser, command
from dassl_clip.engine.paths import FEATURE_FOLDER
from dassl_clip.results.errors import UserError
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, cache_dir

DAY = 86400.0
SHORTEST_HASH = 4
LEFTOVER = "interrupted write"
LEFTOVER_AGE = 3600.0  # seconds after which a temporary file is nobody's any more
_ARRAY = re.compile(r"([0-9a-f]{64})\.npy")
_TEMPORARY = re.compile(r"\.{1,2}([0-9a-f]{64})\.(part|part\.json|(npy|json|part\.json)\..+\.tmp)")


@dataclass(frozen=True)
class Entry:
    """One array of the cache, or what an interrupted write left behind."""

    name: str  # its hash
    kind: str  # `image features`, `text features`, `content head`, ...
    holds: str  # what of, in a few words
    size: int  # bytes of all its files
    used: float  # when it was written or read last, seconds since the epoch
    files: tuple[Path, ...]


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip cache",
        description="List or remove the features that are cached on the disk. They can all be made again.",
        epilog="example: dassl-clip cache rm --older-than 30",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    shared = argparse.ArgumentParser(add_help=False)
    actions.add_parser("ls", parents=[shared], help="what is there: kind, size, last use",
                       epilog="example: dassl-clip cache ls")  # fmt: skip
    remove = actions.add_parser("rm", parents=[shared], help="remove some or all of it",
                                epilog="example: dassl-clip cache rm 3a3289bf --dry-run")  # fmt: skip
    remove.add_argument("hashes", nargs="*", metavar="HASH", help="the first letters of a hash that `ls` shows")
    remove.add_argument("--all", action="store_true", help="everything")
    remove.add_argument("--older-than", type=float, metavar="DAYS", help="what was not used for so many days")
    remove.add_argument("--dry-run", action="store_true", help="say what would be removed, remove nothing")
    return parser


def read_entries(folder: Path) -> list[Entry]:
    """What the folder of the features holds, the last used first."""
    entries = []
    for path in folder.iterdir() if folder.is_dir() else ():
        facts_file = path.with_suffix(".json")
        match, temporary = _ARRAY.fullmatch(path.name), _TEMPORARY.fullmatch(path.name)
        try:
            status = path.stat()
            if match is not None:
                files = tuple(file for file in (path, facts_file) if file.is_file())
                size = sum(file.stat().st_size for file in files)
                try:
                    facts = json.loads(facts_file.read_text(encoding="utf-8"))
                    kind = str(facts.get("kind", "unknown"))
                except (OSError, ValueError, AttributeError):
                    kind, facts = "unknown", {}
                holds = [f"{facts[key]:,} {key}" for key in ("images", "texts") if isinstance(facts.get(key), int)]
                holds += [f"weights {weights}"] if (weights := str(facts.get("weights_hash", ""))[:12]) else []
                entries.append(Entry(match[1], kind, ", ".join(holds), size, status.st_mtime, files))
                continue
        except FileNotFoundError:  # removed by somebody else meanwhile
            continue
        orphan = path == facts_file and not path.with_suffix(".npy").exists() and _ARRAY.match(f"{path.stem}.npy")
        if orphan or (temporary is not None and time.time() - status.st_mtime > LEFTOVER_AGE):
            name = path.stem if temporary is None else temporary[1]
            entries.append(Entry(name, LEFTOVER, "", status.st_size, status.st_mtime, (path,)))
    return sorted(entries, key=lambda entry: (-entry.used, entry.name))


def run(args: argparse.Namespace) -> int:
    """List the arrays, or remove those that the arguments name.

    Raises:
        UserError: the cache is switched off, or what to remove is not clear.
    """
    from tabulate import tabulate

    removes = args.action == "rm"
    if removes and sum((bool(args.hashes), args.all, args.older_than is not None)) != 1:
        raise UserError("say what to remove: hashes as `dassl-clip cache ls` shows them, --all, or --older-than DAYS")
    if removes and (args.older_than or 0) < 0:
        raise UserError(f"--older-than {args.older_than:g}: days are at least 0")
    above = cache_dir()
    if above is None:
        raise UserError(f"{CACHE_VARIABLE} is '{CACHE_OFF}': nothing is cached, so there is nothing to list or remove")
    entries, now = read_entries(above / FEATURE_FOLDER), time.time()
    if not removes:
        lines = [[e.name[:12], e.kind, e.holds, size_text(e.size), age_text(now - e.used)] for e in entries]
        columns = ["hash", "kind", "holds", "size", "last used"]
        align = ("left", "left", "left", "right", "right")
        print(f"{tabulate(lines, columns, disable_numparse=True, colalign=align)}\n" if lines else "", end="")
        print(f"{len(entries)} in {above}, {size_text(sum(entry.size for entry in entries))} in all")
        return 0
    chosen = [entry for text in args.hashes for entry in named(text, entries)]
    if not args.hashes:
        chosen = [entry for entry in entries if args.all or entry.used < now - args.older_than * DAY]
    chosen = list(dict.fromkeys(chosen))
    done = "would remove" if args.dry_run else "removed"
    for entry in chosen:
        print(f"{done} {entry.name[:12]} ({entry.kind}, {size_text(entry.size)})")
        for path in () if args.dry_run else entry.files:
            path.unlink(missing_ok=True)
    print(f"{len(chosen)} of {len(entries)} in {above}, {size_text(sum(entry.size for entry in chosen))}")
    return 0


def named(text: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of the one hash that begins so.

    Raises:
        UserError: none, or more than one.
    """
    if len(text) < SHORTEST_HASH:
        raise UserError(f"'{text}' is too short for a hash: give at least {SHORTEST_HASH} letters")
    found = [entry for entry in entries if entry.name.startswith(text.lower())]
    names = sorted({entry.name for entry in found})
    if not names:
        raise UserError(f"nothing in the cache has a hash that begins with '{text}'; `dassl-clip cache ls` lists them")
    if len(names) > 1:
        raise UserError(f"'{text}' begins {len(names)} hashes ({', '.join(names[:4])}): give more letters")
    return found


def size_text(size: float) -> str:
    """`1.5 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def age_text(seconds: float) -> str:
    """`3 days ago`."""
    for unit, length in (("day", DAY), ("hour", 3600.0), ("minute", 60.0)):
        number = int(seconds // length)
        if number:
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"


main = command(build_parser, run)
