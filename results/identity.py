"""The identity of a run: the part of its configuration, and the files it names, that decide what is computed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    trainer_node = f"TRAINER.{str(flat.get('TRAINER.NAME', '')).upper()}."
    return {
        # Of a run folder only task/dataset/trainer/config/shots/target/seed: the folder above all runs may move.
        key: "/".join(Path(str(value)).parts[-7:]) if key.endswith(_RUN_FOLDERS) else value
        for key, value in flat.items()
        if key not in IDENTITY_FREE
        and not key.startswith(_IDENTITY_FREE_NODES)
        and not key.endswith(_IDENTITY_FREE_ENDS)
        and (not key.startswith("TRAINER.") or key == "TRAINER.NAME" or key.startswith(trainer_node))
    }


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
        if not isinstance(value, str) or not value or key.endswith(_RUN_FOLDERS) or "\0" in value or len(value) > 4095:
            continue
        path = Path(value.removeprefix(LOCAL_FOLDER)).expanduser()
        if path.is_dir() and (value.startswith(LOCAL_FOLDER) or key.endswith(_CONTENT_FOLDERS)):
            hashes[key] = _hash_folder(path, _hash_file)
        elif path.is_dir() and key.endswith(_IMAGE_FOLDERS):
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
