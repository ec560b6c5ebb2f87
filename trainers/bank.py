"""Features of frozen towers, kept on disk under the hash of all that made them.

An entry is a pair of files in the cache folder: `<hash>.npy`, an array that is read memory-mapped, and `<hash>.json`,
the facts whose hash is the name. The facts hold the hash of the weights, the preprocessing, the precision, and path,
size and modification time of every image (or every text), so that a changed image, model or transform has another name
and is never served stale. Files are written under a temporary name and renamed; no pickles are written or read.

The folder is `$DASSL_CLIP_CACHE`, else `$XDG_CACHE_HOME/dassl-clip`, else `~/.cache/dassl-clip`;
`DASSL_CLIP_CACHE=off` keeps nothing.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from . import distributed
from .checkpoint import write_atomically

logger = logging.getLogger(__name__)

VARIABLE = "DASSL_CLIP_CACHE"
OFF = "off"
FOLDER = "features"
SCHEMA = 3  # part of every name: raised when the same facts would give other features


def cache_folder() -> Path | None:
    """The folder above all that is cached, or None if nothing shall be kept."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() == OFF:
        return None
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dassl-clip"


def image_facts(paths: Sequence[str]) -> dict[str, object]:
    """What names a list of image files: their number, and one hash over path, size and time of each, in order."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(f"{os.path.abspath(path)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode(errors="replace"))
    return {"images": len(paths), "files": digest.hexdigest(), "pillow": PIL.__version__}


def text_facts(texts: Sequence[str]) -> dict[str, object]:
    """What names a list of texts: their number and one hash over them, in order."""
    return {"texts": len(texts), "words": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()}


def tower_facts(backbone: dict, precision: str, device: torch.device) -> dict[str, object]:
    """What names the tower: architecture and activation (which weights do not tell), the weights' hash, how it reads
    pixels, and the arithmetic.

    Args:
        backbone: `FrozenCLIP.describe()`.
        precision: Name of the trainer's precision.
        device: Where the tower runs; its kind counts, its number does not.
    """
    read = ("architecture", "activation", "weights_hash", "precision", "compiled", "context_length", "open_clip")
    read += ("image_size", "pixel_mean", "pixel_std", "interpolation", "resize_mode")
    arithmetic = {"amp": precision, "device": device.type, "torch": torch.__version__.split("+")[0]}
    return {key: backbone[key] for key in read} | arithmetic | {"torchvision": torchvision.__version__.split("+")[0]}


def entry_name(facts: dict[str, object]) -> str:
    """The name of the entry that `facts` stand for."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **facts}, sort_keys=True).encode()).hexdigest()


def read_entry(name: str) -> Tensor | None:
    """The array of an entry, float32 and memory-mapped, or None if it is not in the cache."""
    folder = cache_folder()
    return None if folder is None else _read(folder / FOLDER / f"{name}.npy")


def cached(facts: dict[str, object], make: Callable[[], Tensor]) -> Tensor:
    """The array that `facts` name: read from the cache, or made and put there.

    Several processes call it together: the main one reads and writes, and all make.

    Args:
        facts: JSON-able; everything that decides the values.
        make: Computes the tensor, float32, in every process.

    Returns:
        A float32 tensor on the CPU, memory-mapped where it was read from the cache (changes stay in memory).
    """
    if distributed.world_size() == 1:
        return _cached(facts, make)
    if not distributed.is_main():
        distributed.follow(make)
        return distributed.main_array(read_entry(entry_name(facts)))
    values = _cached(facts, distributed.announced(make))
    distributed.announce_end()
    return distributed.main_array(values)


def _cached(facts: dict[str, object], make: Callable[[], Tensor]) -> Tensor:
    """`cached`, in one process."""
    folder = cache_folder()
    if folder is None:
        return make().cpu()
    path = folder / FOLDER / f"{entry_name(facts)}.npy"
    found = read_array(path)
    if found is not None:
        return found
    values = make().cpu()
    try:
        write_atomically(path, lambda file: np.save(file, values.numpy(), allow_pickle=False))
        write_facts(path, facts)
    except OSError as error:
        warn_not_kept(error)
    return values


def write_facts(path: Path, facts: dict[str, object]) -> None:
    """Write the facts of an entry beside its array at `path`."""
    said = json.dumps({"schema": SCHEMA, **facts}, indent=1).encode()
    write_atomically(path.with_suffix(".json"), lambda file: file.write(said))
    logger.info("features kept in %s", path)


def warn_not_kept(error: OSError) -> None:
    """Say that the cache cannot be written, and what to do."""
    logger.warning("features are not kept (%s): set %s to a folder with room, or to %s", error, VARIABLE, OFF)


def read_array(path: Path, count: int | None = None) -> Tensor | None:
    """The array at a path, or None; says so, and notes the time of its use, for clearing up.

    Args:
        path: The file.
        count: Its length, where that is known.
    """
    found = _read(path, count)
    if found is not None:
        logger.info("features %s read from %s", list(found.shape), path)
        with contextlib.suppress(OSError):  # a folder that can only be read
            os.utime(path)
    return found


def _read(path: Path, count: int | None = None) -> Tensor | None:
    """The array of a file, or None if there is no whole one of that length."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if array.dtype != np.float32:
            raise ValueError(f"holds {array.dtype}")
        if count is not None and array.shape[:1] != (count,):
            raise ValueError(f"holds {list(array.shape)}, not {count} rows")
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged header makes numpy raise almost anything
        logger.warning("%s is no array of features and is made again: %s", path, error)
        return None
    return torch.from_numpy(array)
