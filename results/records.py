"""One JSON record a run: its schema, its checks, and how it is written, read and gathered.

`record.json` is the last file that a run writes, atomically, so it is also the done marker: a folder whose record reads
as complete holds a finished run, everything else is missing or broken and may be redone.

A trainer makes its record in two steps::

    record = records.facts_from_config(cfg) | records.environment_facts()
    record |= {"backbone": {...}, "metrics": {"test": {...}}, "num_train": ..., ...}     # what only the trainer knows
    records.write_record(cfg.OUTPUT_DIR, record)

Keys beyond the schema are allowed and kept, as long as they are JSON values without NaN or infinity.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from .environment import environment_facts
from .errors import MissingFileError, UserError
from .files import check_regular, write_bytes_atomically, write_text_atomically

__all__ = [
    "FIELDS",
    "RECORD_NAME",
    "SCHEMA_VERSION",
    "FoundRecord",
    "check_record",
    "config_differences",
    "config_hash",
    "environment_facts",
    "facts_from_config",
    "find_records",
    "has_checkpoints",
    "flatten_config",
    "identity",
    "identity_differences",
    "inspect_record",
    "is_complete",
    "learned_folder",
    "named_files",
    "protocol_of",
    "read_record",
    "task_of",
    "write_bytes_atomically",
    "write_record",
    "write_text_atomically",
]

RECORD_NAME = "record.json"
CHECKPOINTS = ("*/model*.pth.tar*", "*/step*.pth.tar*")  # learned parts in a run folder
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
    "shots": (int,),  # images a class, below 1: all
    "seed": (int,),
    "split_seed": (int,),
    "prompt": (str,),  # words around the class name, or the template set's members or name
    "backbone": (dict,),  # at least name and weights_hash
    "num_train": (int,),
    "metrics": (dict,),  # split -> {accuracy, error_rate, macro_f1 in percent, total, correct, ...}
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
_METRICS = ("accuracy", "error_rate", "total", "correct")
_SECONDS = ("train", "test", "total")
_DOMAIN_LISTS = ("source_domains", "target_domains")
# What tables, figures and pages read inside `FIELDS`, and beyond them where it is there; keys of a dict may lack.
_SHAPES: dict[str, Any] = {
    "versions": dict[str, str],
    "toolbox": dict[str, str],
    "source_dataset": str,
    "data_protocol": str,
    "classnames": list[str],
    "history": list[dict[str, float]],
    "reading_notes": list[str],
    "skipped_images": list[str],
    "alpha": float,
    "files": dict[str, str],
    "evaluated_from": str,
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
_HALF = re.compile("[\ud800-\udfff]")  # of a pair that stands for a character; a byte that is no text

# Keys of the configuration that say where and how conveniently a run happens, but not what it computes.
IDENTITY_FREE = frozenset(
    {
        "OUTPUT_DIR",
        "RESUME",
        "USE_CUDA",
        "VERBOSE",
        "DATASET.ROOT",
        "DATALOADER.NUM_WORKERS",
        "DATALOADER.ON_BAD_IMAGE",
        "TRAIN.PRINT_FREQ",
        "TRAIN.CHECKPOINT_FREQ",
        "TRAIN.CHECKPOINT_STEPS",
    }
)
_IDENTITY_FREE_NODES = ("RUN.",)
_IDENTITY_FREE_ENDS = (".TASKS",)
LOCAL_FOLDER = "local-dir:"  # of MODEL.BACKBONE.NAME: a model in a folder of its own
_CONTENT_FOLDERS, _IMAGE_FOLDERS = (".TOKENIZER",), (".IMAGE_FOLDER",)  # ends of keys
_RUN_FOLDERS = (".FROM",)  # ends of keys that name a run's folder, wherever the folder above all runs lies


@dataclass(frozen=True)
class FoundRecord:
    """What a run folder says about itself.

    Attributes:
        folder: the run folder.
        state: "complete", "broken" (there is a record, but it cannot be used), "copy" (another folder holds the same
            record) or "missing".
        record: the record of a complete run, otherwise None.
        reason: why a record is broken, or of which folder it is a copy, as one sentence.
    """

    folder: Path
    state: str
    record: dict[str, Any] | None = None
    reason: str = ""


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
        elif key in _NON_EMPTY and not value:
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
    if record.get("data"):
        yield from _data_faults(record["data"])
    for key in _DOMAIN_LISTS:
        if not all(isinstance(name, str) for name in record[key]):
            yield f"'{key}' should be a list of names, not {record[key]!r}"
    for key in ("name", "weights_hash"):
        if not isinstance(record["backbone"].get(key), str):
            yield f"'backbone.{key}' should be a text"
    yield from _number_faults("seconds", record["seconds"], _SECONDS)
    yield from _number_faults("losses", record["losses"], ())
    for key, shape in _SHAPES.items():
        if key in record and not _fits(record[key], shape):
            yield f"'{key}' should be {_said(shape)}, not {record[key]!r:.80}"
    base = record.get("refines")
    if base and isinstance(base, Mapping) and not {"method", "config"} <= base.keys():
        yield "'refines' should name method and config"
    for split, metrics in record["metrics"].items():
        if not isinstance(metrics, Mapping):
            yield f"'metrics.{split}' should be a dict of numbers, not {metrics!r:.80}"
            continue
        faults = list(_number_faults(f"metrics.{split}", metrics, _METRICS))
        yield from faults
        if not faults and not 0 <= metrics["correct"] <= metrics["total"]:
            yield f"'metrics.{split}' counts {metrics['correct']} correct of {metrics['total']}"
        if not faults and not 0 <= metrics["accuracy"] <= 100:
            yield f"'metrics.{split}.accuracy' is {metrics['accuracy']}, outside 0 to 100 percent"


def _data_faults(data: Mapping[str, Any]) -> Iterator[str]:
    for key in ("fingerprint", "test", "listing", "names"):
        if not isinstance(data.get(key), str):
            yield f"'data.{key}' should be a text"
    if not isinstance(data.get("counts"), Mapping):
        yield "'data.counts' should be a dict of numbers"
    else:
        yield from _number_faults("data.counts", data["counts"], ())


def _number_faults(name: str, values: Mapping[str, Any], required: tuple[str, ...]) -> Iterator[str]:
    for key in required:
        if key not in values:
            yield f"'{name}.{key}' is missing"
    for key in required or values:
        if key in values and (isinstance(values[key], bool) or not isinstance(values[key], _NUMBER)):
            yield f"'{name}.{key}' should be a number, not {values[key]!r}"


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value has a shape of `_SHAPES`."""
    if isinstance(shape, dict):
        return isinstance(value, Mapping) and all(_fits(value[key], shape[key]) for key in value.keys() & shape.keys())
    inner = get_args(shape)
    if get_origin(shape) is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if get_origin(shape) is dict:
        return isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
    return isinstance(value, _NUMBER if shape is float else shape) and not isinstance(value, bool)


def _said(shape: Any) -> str:
    if isinstance(shape, dict):
        return f"a dict with {', '.join(shape)}"
    return str(shape) if get_args(shape) else shape.__name__


def _json_faults(value: Any, path: str = "") -> Iterator[str]:
    """Everything that JSON cannot hold, by its place in the record."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or _HALF.search(key):
                yield f"key {key!r:.80} in '{path or 'record'}' should be a text"
            yield from _json_faults(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _json_faults(item, f"{path}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"'{path}' is {value}, not a finite number"
    elif isinstance(value, int) and abs(value) > _LARGEST:
        yield f"'{path}' has more digits than a number of 64 bits"
    elif isinstance(value, str) and _HALF.search(value):
        yield f"'{path}' is {value!r:.80}, which is no text in UTF-8"
    elif not isinstance(value, (str, int, float, bool, type(None))):
        yield f"'{path}' is a {type(value).__name__}, which JSON cannot hold"


def write_record(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Check a record and write it as the last file of a run, atomically and through to the disk.

    Args:
        folder: the run folder, made if it is absent.
        record: the keys of `FIELDS` and any others; `schema_version` may be left out, and `data` where there is none.

    Returns:
        The path of the record.

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
    folder = Path(folder)
    path = folder / RECORD_NAME
    try:
        check_regular(path)
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return FoundRecord(folder, "missing")
    except NotADirectoryError:
        return FoundRecord(folder, "missing")
    except (OSError, ValueError, RecursionError) as error:
        return FoundRecord(folder, "broken", reason=f"{RECORD_NAME} cannot be read ({error})")
    if not isinstance(record, dict):
        return FoundRecord(folder, "broken", reason=f"{RECORD_NAME} holds no JSON object")
    version = record.get("schema_version")
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        reason = f"{RECORD_NAME} has schema version {version!r}, this program reads versions {known}"
        return FoundRecord(folder, "broken", reason=reason)
    try:
        check_record(record)
    except (ValueError, RecursionError) as error:
        return FoundRecord(folder, "broken", reason=str(error))
    return FoundRecord(folder, "complete", record)


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

    Raises:
        MissingFileError: The evaluated run is gone.
    """
    origin = (read_record(folder) or {}).get("evaluated_from")
    if not origin or has_checkpoints(folder):
        return folder
    if not Path(origin).exists():
        raise MissingFileError(f"{folder} is an evaluation of {origin}, which is not there any more")
    return Path(origin)


def find_records(root: str | os.PathLike[str]) -> list[FoundRecord]:
    """Every complete or broken record at or below a folder, ordered by path; a copy of a run (`cp -r`) counts once.

    Raises:
        MissingFileError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"no folder {root}: give the output folder of a task, or any folder above run folders")
    found, first = [], dict[str, Path]()
    for folder in sorted(path.parent for path in root.rglob(RECORD_NAME)):
        item = inspect_record(folder)
        text = json.dumps(item.record, sort_keys=True)
        if item.record is not None and first.setdefault(text, folder) != folder:
            item = FoundRecord(folder, "copy", reason=f"a copy of the run in {first[text]}")
        found.append(item)
    return found


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of config nodes as one dict `{"OPTIM.LR": 0.002, ...}`; tuples become lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten_config(value, f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, (tuple, list)) else value
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what a run computes, flat: without paths, workers and print settings.

    Trainer nodes other than that of `TRAINER.NAME` do not count.
    """
    flat = flatten_config(config)
    own = f"TRAINER.{str(flat.get('TRAINER.NAME', '')).upper()}."
    return {
        key: _below_output(value) if key.endswith(_RUN_FOLDERS) else value
        for key, value in flat.items()
        if key not in IDENTITY_FREE
        and not key.startswith(_IDENTITY_FREE_NODES)
        and not key.endswith(_IDENTITY_FREE_ENDS)
        and (not key.startswith("TRAINER.") or key == "TRAINER.NAME" or key.startswith(own))
    }


def named_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Key -> SHA-256 of the file that a value of a configuration's identity names (weights, prompts, class names, ...).

    The path alone does not say what was computed: a file may be replaced. Of the folder of a model (`local-dir:FOLDER`)
    or of a tokenizer every file counts, of a folder of images the names and sizes.
    """
    found = {}
    for key, value in identity(config).items():
        if not isinstance(value, str) or not value or key.endswith(_RUN_FOLDERS) or "\0" in value or len(value) > 4095:
            continue
        path = Path(value.removeprefix(LOCAL_FOLDER)).expanduser()
        if path.is_dir() and (value.startswith(LOCAL_FOLDER) or key.endswith(_CONTENT_FOLDERS)):
            found[key] = _hash_folder(path, _hash_of)
        elif path.is_dir() and key.endswith(_IMAGE_FOLDERS):
            found[key] = _hash_folder(path, lambda item: str(item.stat().st_size))
        elif (os.sep in value or path.suffix) and path.is_file():
            found[key] = _hash_of(path)
    return found


def _hash_folder(folder: Path, tell: Callable[[Path], str]) -> str:
    """SHA-256 over the names of all files below a folder, and what `tell` says of each."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    text = "".join(f"{item.relative_to(folder)} {tell(item)}\n" for item in files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _hash_of(path: Path) -> str:
    status = path.stat()
    return _hash_file(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _hash_file(path: str, *status: int) -> str:
    """SHA-256 of a file, read once while its status stays the same."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _below_output(folder: Any) -> str:
    """The part of a run folder that tells what the run is: task/dataset/trainer/config/shots/target/seed."""
    return "/".join(Path(str(folder)).parts[-7:])


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the identity of a configuration: equal hashes mean the same computation was asked for."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def config_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two configurations ask for different computations, as "KEY: 1 there, 2 now"."""
    return identity_differences(identity(there), identity(now))


def identity_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same for two identities, as `identity` gives them."""
    absent = object()
    return [
        f"{key}: {repr(old[key]) if key in old else 'absent'} there, {repr(new[key]) if key in new else 'absent'} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def task_of(source: Sequence[str], target: Sequence[str]) -> str:
    """The task that a pair of domain lists amounts to: "fewshot" inside a domain, "lodo" across domains, or ""."""
    if not source or not target:
        return ""
    if set(source) == set(target):
        return "fewshot"
    return "" if set(source) & set(target) else "lodo"


def facts_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that the resolved configuration knows, from any yacs tree with Dassl's keys.

    `RUN.TASK` and `RUN.CONFIG` (set by the command line) name the task and the config; without them the task follows
    from the domains. Protocol and selection rule are the general ones; a trainer that does otherwise overwrites them.
    """
    flat = flatten_config(config)
    source, target = list(flat.get("DATASET.SOURCE_DOMAINS") or ()), list(flat.get("DATASET.TARGET_DOMAINS") or ())
    task = flat.get("RUN.TASK") or task_of(source, target)
    seed = int(flat.get("SEED", -1))
    split_seed = int(flat.get("DATASET.SPLIT_SEED", -1))
    best = flat.get("TEST.FINAL_MODEL") == "best_val"
    return {
        "method": str(flat.get("TRAINER.NAME", "")),
        "config": str(flat.get("RUN.CONFIG", "")),
        "task": task,
        "dataset": str(flat.get("DATASET.NAME", "")),
        "source_dataset": str(flat.get("RUN.SOURCE") or flat.get("DATASET.NAME", "")),
        "protocol": protocol_of(source, target, task, str(flat.get("DATASET.PROTOCOL", ""))),
        "data_protocol": str(flat.get("DATASET.PROTOCOL", "")),  # which images of the target are tested
        "selection_rule": "best_val on source validation images" if best else "last",
        "source_domains": source,
        "target_domains": target,
        "class_subset": str(flat.get("DATASET.SUBSAMPLE_CLASSES", "all")),
        "shots": int(flat.get("DATASET.NUM_SHOTS", -1)),
        "seed": seed,
        "split_seed": split_seed if split_seed >= 0 else seed,
        "config_hash": config_hash(config),
        "transductive": False,
    }


ALL_IMAGES = "all-images"  # value of DATASET.PROTOCOL
LABEL_FREE_TASKS = {
    "zeroshot": "{tested} tested, no label is trained on",
    "probe": "{tested} tested; probes are trained on a few labelled images",
    "attacks": "{tested} tested, as an attack has changed them; no label is trained on, except by probes",
}
TRANSFER_TASKS = {
    "b2n": "base to new: trained on the base classes, tested on base and on new classes",
    "xd": "cross-dataset: trained on one data set, tested on others",
    "dg": "single-source generalisation: trained on one data set, tested on its variants",
}


EVALUATION = "eval"  # task of a record that evaluates the learned parts of another run
NOT_KNOWN = "data that is not recorded"


def trained_on(facts: Mapping[str, Any]) -> str:
    """What an evaluated checkpoint was trained on, from `trained` of a record: "Icons/line (16 images per class)"."""
    if not facts.get("dataset"):
        return NOT_KNOWN
    domains = "+".join(facts.get("source_domains", ()))
    shots = facts.get("shots", -1)
    told = ["all images" if shots < 1 else f"{shots} images per class"]
    told += [f"{facts['class_subset']} classes"] if facts.get("class_subset", "all") != "all" else []
    told += [f"config {facts['config']}"] if facts.get("config") else []
    return f"{facts['dataset']}{'/' if domains else ''}{domains} ({', '.join(told)})"


def protocol_of(source: Sequence[str], target: Sequence[str], task: str = "", data_protocol: str = "") -> str:
    """The protocol that a task, or a pair of domain lists, amounts to, in one phrase.

    Args:
        source: source domains; empty for a data set without domains.
        target: target domains.
        task: name of the task, "" for a run by hand.
        data_protocol: DATASET.PROTOCOL, which says what is tested; "" where an old record does not hold it.
    """
    if task in LABEL_FREE_TASKS:
        whole = data_protocol == ALL_IMAGES if data_protocol else bool(target)
        tested = f"{'every image' if whole else 'the test part'} of {'a domain' if target else 'the data set'} is"
        return LABEL_FREE_TASKS[task].format(tested=tested)
    if task in TRANSFER_TASKS:
        return TRANSFER_TASKS[task]
    if not source or not target:
        return "training split to test split of one data set"
    if set(source) == set(target):
        return "inside a domain: trained on its training part, tested on its held-out part"
    return "leave one domain out: trained on the source domains, tested on all of the unseen target domain"
