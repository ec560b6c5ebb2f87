"""The identity of a run: the part of its configuration, and the files it names, that decide what is computed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dassl_clip.results.protocols import facts_from_config, flatten_config
from dassl_clip.results.records import RUN_FOLDER_PARTS

from .config import KEYS, is_a

LOCAL_FOLDER = "local-dir:"  # of MODEL.BACKBONE.NAME: a model in a folder of its own


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what a run computes, flat: without paths, workers and print settings.

    Trainer nodes other than that of `TRAINER.NAME` do not count.
    """
    flat = flatten_config(config)
    scenario = flat.get("SCENARIOS.TASK", "")
    trainer_node = f"TRAINER.{str(flat.get('TRAINER.NAME', '')).upper()}."
    return {
        # Of a run folder the last parts alone: the folder above all runs may move.
        key: "/".join(Path(str(value)).parts[-RUN_FOLDER_PARTS:]) if is_a(key, "run_folder") else value
        for key, value in flat.items()
        if (not key.startswith("TRAINER.") or key == "TRAINER.NAME" or key.startswith(trainer_node))
        and not is_a(key, "computes")
        and not (is_a(key, "counts_if_set") and value == _flat(KEYS[key].default))
        and not (is_a(key, "scenarios") and scenario not in KEYS[key].scenarios)
    }


def _flat(default: Any) -> Any:
    """A default as a flat configuration holds it."""
    return list(default) if isinstance(default, tuple) else default


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the identity of a configuration: equal hashes mean the same computation."""
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


def named_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Key -> SHA-256 of the file that a value of a configuration's identity names (weights, prompts, class names, ...).

    The path alone does not say what was computed: a file may be replaced. Of the folder of a model (`local-dir:FOLDER`)
    or of a tokenizer every file counts, of a folder of images the names and sizes.
    """
    hashes = {}
    for key, value in identity(config).items():
        if not isinstance(value, str) or not value or is_a(key, "run_folder") or "\0" in value or len(value) > 4095:
            continue
        path = Path(value.removeprefix(LOCAL_FOLDER)).expanduser()
        if path.is_dir() and (value.startswith(LOCAL_FOLDER) or is_a(key, "bytes_count")):
            hashes[key] = _hash_folder(path, _hash_file)
        elif path.is_dir() and is_a(key, "sizes_count"):
            hashes[key] = _hash_folder(path, lambda file: str(file.stat().st_size))
        elif (os.sep in value or path.suffix) and path.is_file():
            hashes[key] = _hash_file(path)
    return hashes


def _hash_folder(folder: Path, describe: Callable[[Path], str]) -> str:
    """SHA-256 over the names of all files below a folder, and what `describe` says of each."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    text = "".join(f"{file.relative_to(folder)} {describe(file)}\n" for file in files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _hash_file(path: Path) -> str:
    status = path.stat()
    return _hash_content(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _hash_content(path: str, *status: int) -> str:
    """SHA-256 of a file, read once while its status stays the same."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that the resolved configuration knows."""
    return facts_from_config(config) | {"config_hash": config_hash(config)}
