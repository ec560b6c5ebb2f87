"""What methods were seen to read: stored results of `dassl-clip check`, found by a method's files and settings.

A result lies in `checks/` of the cache folder, written by the command, or in `results/checks/`, shipped. It holds for
the files whose hash is in its name, and for the settings that it was made with; under other ones nothing is known.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import cache_dir, write_text_atomically

logger = logging.getLogger(__name__)

FOLDER = "checks"
SHIPPED = Path(__file__).with_name(FOLDER)
UNLABELLED = "unlabelled: "  # beginning of the entry of a budget for test images without labels
NOT_CHECKED = "not checked"


def file_name(method: str, source: str, decisive: Mapping[str, Any]) -> str:
    """The name of the file with a method's result, by the SHA-256 over its files and its decisive settings."""
    text = json.dumps(dict(decisive), sort_keys=True, default=str)
    return f"{method}-{source[:16]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def store(method: str, source: str, decisive: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Keep a result in the cache, where there is one."""
    folder = cache_dir()
    if folder is None:
        return
    path = folder / FOLDER / file_name(method, source, decisive)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps({"method": method, "source": source, **facts}, indent=1) + "\n")
    _read.cache_clear()


def stored(method: str, source: str, decisive: Mapping[str, Any]) -> list[str]:
    """What a method reads, by the newest result for these files and settings; empty where there is none."""
    name, cache = file_name(method, source, decisive), cache_dir()
    for folder in filter(None, (cache and cache / FOLDER, SHIPPED)):
        if found := _read(folder / name):
            return list(found)
    return []


@functools.cache
def _read(path: Path) -> tuple[str, ...]:
    try:
        budget = json.loads(path.read_text(encoding="utf-8"))["budget"]
        return tuple(str(entry) for entry in budget)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the result of a check in %s cannot be read (%s): run `dassl-clip check` again", path, error)
        return ()


def text_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The budget of the runs of a row in one text."""
    return " | ".join(sorted({", ".join(record.get("budget") or ()) or NOT_CHECKED for record in records}))


def lines_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A line for the header of a table: what the runs of each row read; none where no row was checked.

    Args:
        rows: records by the label of their row.
    """
    if not any(record.get("budget") for records in rows.values() for record in records):
        return []
    owners: dict[str, list[str]] = {}
    for label, records in rows.items():
        owners.setdefault(text_of(records), []).append(label)
    each = (f"{text} [{', '.join(labels)}]" for text, labels in owners.items())
    return [f"reads, by its check: {'; '.join(each)}"]


def is_transductive(record: Mapping[str, Any]) -> bool:
    """Whether unlabelled test images were used: by the check of the method where there is one, else by the record.

    What was learned from other images, and is tested here, saw none of these.
    """
    budget: Sequence[str] = () if record.get("evaluated_from") else record.get("budget") or ()
    return any(entry.startswith(UNLABELLED) for entry in budget) if budget else bool(record["transductive"])
