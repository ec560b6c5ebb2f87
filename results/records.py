"""One JSON record per run: its schema, its checks, and how it is written, read and gathered.

`record.json` is the last file that a run writes, atomically, so it is also the done marker: a folder whose record reads
as complete holds a finished run, everything else is missing or broken and may be redone.

A trainer makes its record in two steps::

    record = facts_from_config(cfg) | environment_facts() | {"config_hash": ...}
    record |= {"backbone": {...}, "metrics": {"test": {...}}, "num_train": ..., ...}     # what only the trainer knows
    write_record(cfg.OUTPUT_DIR, record)

Keys beyond the schema are allowed and kept, as long as they are JSON values without NaN or infinity.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from .errors import MissingFileError, UserError
from .files import check_regular, kind_of, write_bytes_atomically, write_text_atomically
from .trust import METRICS

RECORD_NAME = "record.json"
ARCHIVE = ".jsonl.gz"  # suffix of a file of many records
CHECKPOINTS = ("*/model*.pth.tar*", "*/step*.pth.tar*")  # learned parts in a run folder
RUN_FOLDER_PARTS = 7  # task, data set, method, config, shots, target and seed
SCHEMA_VERSION = 2
READ_VERSIONS = (1, SCHEMA_VERSION)  # 1 had no `data`: such a record says "data not recorded"

_NUMBER = (int, float)
# key -> accepted types; a key of `_NON_EMPTY` must also hold something.
FIELDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "method": (str,),  # registry name of the trainer
    "config": (str,),  # name of the trainer's config file, with "+KEY=VALUE" for what was changed
    "task": (str,),  # "lodo", "fewshot", ... or "" for a run by hand
    "dataset": (str,),
    "protocol": (str,),  # one sentence: what was trained on, what was tested on
    "selection_rule": (str,),  # "none", "last", "best_val on source validation images", ...
    "source_domains": (list,),
    "target_domains": (list,),
    "class_subset": (str,),  # "all", "base", "new"
    "shots": (int,),  # images per class, below 1: all
    "seed": (int,),
    "split_seed": (int,),
    "prompt": (str,),  # words around the class name, or the template set's members or name
    "backbone": (dict,),  # at least name and weights_hash
    "num_train": (int,),
    "metrics": (dict,),  # split or extra test -> {accuracy, error_rate, macro_f1, ece in percent, total, ...}
    "losses": (dict,),  # name -> mean over the last epoch
    "seconds": (dict,),  # train, test, total
    "peak_memory_mb": _NUMBER,
    "versions": (dict,),
    "toolbox": (dict,),  # kind ("embedded" or "upstream"), version, path
    "device": (str,),
    "precision": (str,),
    "git_revision": (str,),  # "" outside a checkout
    "config_hash": (str,),
    "data_fingerprint": (str,),  # of `data`; in version 1 a hash over names and labels alone
    "data": (dict,),  # what `RunData.facts` says of the images, {} where the trainer has no lists of images
    "command": (str,),
    "finished_at": (str,),  # ISO 8601, UTC
    "transductive": (bool,),  # True: unlabelled test images were used
}
_NON_EMPTY = ("method", "dataset", "protocol", "selection_rule", "metrics", "config_hash", "finished_at", "device")
# What tables, figures and pages read inside `FIELDS`, and beyond them where it is there; keys of a dict may lack.
_SHAPES: dict[str, Any] = {
    "versions": dict[str, str],
    "toolbox": dict[str, str],
    "source_dataset": str,
    "data_protocol": str,
    "test_part": str,  # of DomainBed's protocol: which part of the target is tested, and the trial that drew it
    "trial": int,
    "classnames": list[str],
    "history": list[dict[str, float]],
    "reading_notes": list[str],  # how the extra tests were made
    # Batches, streams or orders of the tested images: names of their metrics, and why some do not apply.
    "scenarios": {
        "task": str,
        "seed": int,
        "cases": list[str],
        "not_applicable": dict[str, str],
        "notes": dict[str, str],  # by case
        "needs": str,
    },
    "training": {"between": dict[str, float]},  # rows with the weights between start and end -> share of the end
    "skipped_images": list[str],
    "files": dict[str, str],
    "learned_parameters": int,
    "untested": str,  # why there are no metrics: the images have no labels, or nothing was tested
    "budget": list[str],  # what a check of the method has found it to read; empty: it was not checked
    "evaluated_from": str,
    "tested_training_images": int,  # of an evaluation: how many tested images its run had trained on
    "refines": {"folder": str, "method": str, "config": str, "data": dict},
    "trained": {
        "dataset": str,
        "source_domains": list[str],
        "shots": int,
        "seed": int,
        "class_subset": str,
        "config": str,
        "data": dict,
    },
}
_LARGEST = 2**63 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, or a byte that is no text


@dataclass(frozen=True)
class FoundRecord:
    """What a run folder says about itself."""

    folder: Path
    state: str  # "complete", "broken" (a record that cannot be used), "copy" (of another folder's record) or "missing"
    record: dict[str, Any] | None = None  # of a complete run
    reason: str = ""  # why a record is broken, or of which folder it is a copy


def check_record(record: Mapping[str, Any]) -> None:
    """Check a record against the schema.

    Raises:
        UserError: one sentence that lists every fault: missing keys, wrong types, empty texts, numbers that are not
            finite, counts that contradict each other.
    """
    absent = [key for key in FIELDS if key not in record]
    faults = [f"'{key}' is missing" for key in absent if key != "data" or record.get("schema_version") != 1]
    for key, types in FIELDS.items():
        if key not in record:
            continue
        value = record[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(kind.__name__ for kind in types)
            faults.append(f"'{key}' should be {expected}, not {type(value).__name__} ({value!r:.80})")
        elif key in _NON_EMPTY and not value and not (key == "metrics" and record.get("untested")):
            faults.append(f"'{key}' is empty")
    faults += _shape_faults(record) if not faults else []
    faults += _json_faults(record)
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise UserError(f"not a valid record (schema version {SCHEMA_VERSION}): " + "; ".join(faults[:8]) + more)


def _shape_faults(record: Mapping[str, Any]) -> Iterator[str]:
    """Faults inside the nested parts of a record whose keys and types are right."""
    if record["schema_version"] not in READ_VERSIONS:
        yield f"'schema_version' is {record['schema_version']}, this program writes {SCHEMA_VERSION}"
    if data := record.get("data"):
        yield from (
            f"'data.{key}' should be a text"
            for key in ("fingerprint", "test", "listing", "names")
            if not isinstance(data.get(key), str)
        )
        if isinstance(data.get("counts"), Mapping):
            yield from _number_faults("data.counts", data["counts"])
        else:
            yield "'data.counts' should be a dict of numbers"
    for key in ("source_domains", "target_domains"):
        if not all(isinstance(name, str) for name in record[key]):
            yield f"'{key}' should be a list of names, not {record[key]!r}"
    for key in ("name", "weights_hash"):
        if not isinstance(record["backbone"].get(key), str):
            yield f"'backbone.{key}' should be a text"
    yield from _number_faults("seconds", record["seconds"], ("train", "test", "total"))
    yield from _number_faults("losses", record["losses"])
    for key, shape in _SHAPES.items():
        if key in record and not _has_shape(record[key], shape):
            yield f"'{key}' should be {_shape_name(shape)}, not {record[key]!r:.80}"
    base = record.get("refines")
    if base and isinstance(base, Mapping) and not {"method", "config"} <= base.keys():
        yield "'refines' should name method and config"
    for split, metrics in record["metrics"].items():
        if not isinstance(metrics, Mapping):
            yield f"'metrics.{split}' should be a dict of numbers, not {metrics!r:.80}"
            continue
        measured = (metric.key for metric in METRICS.values() if metric.key in metrics)
        required = ("accuracy", "error_rate", "total", "correct", *measured)
        faults = list(_number_faults(f"metrics.{split}", metrics, required))
        yield from faults
        if not faults and not 0 <= metrics["correct"] <= metrics["total"]:
            yield f"'metrics.{split}' counts {metrics['correct']} correct of {metrics['total']}"
        if not faults and not 0 <= metrics["accuracy"] <= 100:
            yield f"'metrics.{split}.accuracy' is {metrics['accuracy']}, outside 0 to 100 percent"


def _number_faults(name: str, values: Mapping[str, Any], required: tuple[str, ...] = ()) -> Iterator[str]:
    """Faults of the required numbers, or of all values where none is required."""
    for key in required or values:
        if key not in values:
            yield f"'{name}.{key}' is missing"
        elif isinstance(values[key], bool) or not isinstance(values[key], _NUMBER):
            yield f"'{name}.{key}' should be a number, not {values[key]!r}"


def _has_shape(value: Any, shape: Any) -> bool:
    """Whether a value has a shape of `_SHAPES`."""
    if isinstance(shape, dict):
        return isinstance(value, Mapping) and all(
            _has_shape(value[key], shape[key]) for key in value.keys() & shape.keys()
        )
    inner = get_args(shape)
    if get_origin(shape) is list:
        return isinstance(value, (list, tuple)) and all(_has_shape(item, inner[0]) for item in value)
    if get_origin(shape) is dict:
        return isinstance(value, Mapping) and all(_has_shape(item, inner[1]) for item in value.values())
    return isinstance(value, _NUMBER if shape is float else shape) and not isinstance(value, bool)


def _shape_name(shape: Any) -> str:
    if isinstance(shape, dict):
        return f"a dict with {', '.join(shape)}"
    return str(shape) if get_args(shape) else str(shape.__name__)


def _json_faults(value: Any, path: str = "") -> Iterator[str]:
    """Everything that JSON cannot hold, by its path in the record."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or _SURROGATE.search(key):
                yield f"key {key!r:.80} in '{path or 'record'}' should be a text"
            yield from _json_faults(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _json_faults(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"'{path}' is {value}, not a finite number"
    elif isinstance(value, int) and abs(value) > _LARGEST:
        yield f"'{path}' has more digits than a number of 64 bits"
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield f"'{path}' is {value!r:.80}, which is no text in UTF-8"
    elif not isinstance(value, (str, int, float, bool, type(None))):
        yield f"'{path}' is a {type(value).__name__}, which JSON cannot hold"


def write_record(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Check a record and write it as the last file of a run, atomically and through to the disk; returns its path.

    `schema_version` may be left out, and `data` where there is none.

    Raises:
        UserError: the record does not fit the schema; nothing is written.
    """
    record = {"schema_version": SCHEMA_VERSION, "data": {}, **record}
    check_record(record)
    path = Path(folder) / RECORD_NAME
    write_text_atomically(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def inspect_record(folder: str | os.PathLike[str]) -> FoundRecord:
    """Say whether a folder holds a complete, a broken or no record; never raises for what lies in the file."""
    path = Path(folder) / RECORD_NAME
    try:
        check_regular(path)
        return _inspect(path.read_text(encoding="utf-8"), path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return FoundRecord(path.parent, "missing")
    except (OSError, ValueError) as error:
        return FoundRecord(path.parent, "broken", reason=f"{RECORD_NAME} cannot be read ({error})")


def _inspect(text: str, folder: Path) -> FoundRecord:
    """What a record's text holds."""

    def broken(reason: str) -> FoundRecord:
        return FoundRecord(folder, "broken", reason=reason)

    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return broken(f"{RECORD_NAME} cannot be read ({error})")
    if not isinstance(record, dict):
        return broken(f"{RECORD_NAME} holds no JSON object")
    version = record.get("schema_version")
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        return broken(f"{RECORD_NAME} has schema version {version!r}, this program reads versions {known}")
    try:
        check_record(record)
    except (ValueError, RecursionError) as error:
        return broken(str(error))
    return FoundRecord(folder, "complete", record)


def write_archive(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write many records into one file, one JSON object per line, gzip; the same records give the same bytes."""
    lines = [json.dumps(record, sort_keys=True) + "\n" for record in records]
    write_bytes_atomically(path, gzip.compress("".join(lines).encode(), mtime=0))


def _read_archive(path: Path) -> list[FoundRecord]:
    """The records of a file of `write_archive`; the number of the line takes the place of the folder."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        return [FoundRecord(path, "broken", reason=f"it cannot be read ({error})")]
    return [_inspect(line, path / str(number)) for number, line in enumerate(lines, 1)]


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of a finished run, or None where there is none that can be used (`inspect_record` says why)."""
    return inspect_record(folder).record


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a finished run."""
    return inspect_record(folder).state == "complete"


def has_checkpoints(folder: Path) -> bool:
    """Whether a run folder holds learned parts."""
    return any(path for pattern in CHECKPOINTS for path in folder.glob(pattern))


def learned_folder(folder: Path) -> Path:
    """Where the learned parts of a run lie: in its own folder; of an evaluation, in the run (or export) it evaluated.

    A run that was moved together with its evaluation is found by the last parts of its path, if it learned the same.

    Raises:
        MissingFileError: The evaluated run is gone.
    """
    record = read_record(folder) or {}
    origin = record.get("evaluated_from")
    if not origin or has_checkpoints(folder):
        return folder
    if Path(origin).exists():
        return Path(origin)
    for above in folder.absolute().parents:
        moved = above.joinpath(*Path(origin).parts[-RUN_FOLDER_PARTS:])
        if (read_record(moved) or {}).get("learned", "absent") == record.get("learned"):
            return moved
    raise MissingFileError(f"{folder} is an evaluation of {origin}, which is not there any more")


def find_records(root: str | os.PathLike[str]) -> list[FoundRecord]:
    """Every complete or broken record at or below a folder, ordered by path; a copy of a run (`cp -r`) counts once.

    Files of `write_archive` count with all their records, by themselves and in a folder.

    Raises:
        MissingFileError: the folder does not exist.
    """
    root = Path(root)
    if root.is_file() and root.name.endswith(ARCHIVE):
        return _read_archive(root)
    if not root.is_dir():
        fault = f"no folder {root}" if (kind := kind_of(root)) == "nothing" else f"{root} is {kind}, not a folder"
        raise MissingFileError(
            f"{fault}: give the output folder of a task, any folder above run folders, or a file *{ARCHIVE}"
        )
    records, first = [], dict[str, Path]()
    each = [inspect_record(folder) for folder in sorted(path.parent for path in root.rglob(RECORD_NAME))]
    each += [found for path in sorted(root.rglob(f"*{ARCHIVE}")) for found in _read_archive(path)]
    for found in each:
        text = json.dumps(found.record, sort_keys=True)
        if found.record is not None and first.setdefault(text, found.folder) != found.folder:
            found = FoundRecord(found.folder, "copy", reason=f"a copy of the run in {first[text]}")
        records.append(found)
    return records
