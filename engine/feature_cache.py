"""Features of frozen towers, cached on disk under the hash of all that made them.

An entry is a pair of files in the cache folder: `<hash>.npy`, an array that is read memory-mapped, and `<hash>.json`,
the facts whose hash is the name, with the array's shape and checksums. The facts hold the hash of the weights, the
preprocessing, the precision, and path, size, inode and times of every image (or every text), so that a changed image,
model or transform has another name and is never served stale. Files are written under a temporary name and renamed; no
pickles are written or read.

Every block of rows has a CRC-32, which is checked whenever an entry is opened. An entry of which a bit has changed, or
that lies under another one's name, is removed with a warning and made again.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from dassl_clip.results import locking
from dassl_clip.results.errors import UserError
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, cache_dir, write_atomically

from . import distributed, signals

logger = logging.getLogger(__name__)

FOLDER = "features"
SCHEMA = 4  # part of every name: raised when the same facts would give other features
BLOCK_BYTES = 2**22  # of the rows that share a checksum
POLL_SECONDS = 0.2


def image_facts(paths: Sequence[str]) -> dict[str, object]:
    """What names a list of image files: their number, and one hash over path, size, times and inode of each, in order.

    The modification time alone can be set back (`cp -p`, `rsync --times`, archives that give every file the time 0).
    The time of the last change of status (ctime) cannot, and a file in another one's place has another inode. The
    device is left out: its number differs between machines that mount one file system.
    """
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(path)
        line = f"{os.path.abspath(path)}\t{found.st_size}\t{found.st_mtime_ns}\t{found.st_ctime_ns}\t{found.st_ino}\n"
        digest.update(line.encode(errors="replace"))
    return {"images": len(paths), "files": digest.hexdigest(), "pillow": PIL.__version__}


def text_facts(texts: Sequence[str]) -> dict[str, object]:
    """What names a list of texts: their number and one hash over them, in order."""
    return {"texts": len(texts), "words": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()}


def tower_facts(backbone: Mapping[str, Any], precision: str, device: torch.device) -> dict[str, object]:
    """What names the tower: architecture and activation (which weights do not tell), the weights' hash, how it reads
    pixels, and the arithmetic.

    Args:
        backbone: `FrozenCLIP.describe()`.
        precision: Name of the trainer's precision.
        device: Where the tower runs; its kind counts, its number does not.
    """
    read = ("architecture", "activation", "weights_hash", "precision", "compiled", "context_length", "open_clip",
            "image_size", "pixel_mean", "pixel_std", "interpolation", "resize_mode")  # fmt: skip
    arithmetic = {"amp": precision, "device": device.type, "torch": torch.__version__.split("+")[0]}
    return {key: backbone[key] for key in read} | arithmetic | {"torchvision": torchvision.__version__.split("+")[0]}


def entry_name(facts: dict[str, object]) -> str:
    """The name of the entry that `facts` stand for."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **facts}, sort_keys=True).encode()).hexdigest()


def read_entry(name: str) -> Tensor | None:
    """The array of an entry, float32 and memory-mapped, or None if it is not in the cache."""
    folder = cache_dir()
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
    folder = cache_dir()
    if folder is None:
        return make().cpu()
    path = folder / FOLDER / f"{entry_name(facts)}.npy"
    found = read_array(path)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(turn(path))
        except OSError as error:
            warn_not_cached(error)
            return make().cpu()
        found = read_array(path)  # made by another process meanwhile
        if found is not None:
            return found
        values = make().cpu()
        try:
            array = np.ascontiguousarray(values.numpy())
            write_facts(path, facts, array.shape, block_sums(array))
            write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
        except OSError as error:
            warn_not_cached(error)
        return values


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Be the one process that makes the entry at a path; waits while another one is.

    Raises:
        OSError: Nothing can be written there.
        Terminated: A stop was requested while this process waited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.stem}.lock")
    waits = False
    while (held := locking.acquire(place, 0.0)) is None:
        if not waits:
            logger.info("another process is making the same features: waiting for it (%s)", path)
        waits = True
        signals.raise_if_stopped()
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        held.release(remove=True)


def rows_of_block(shape: Sequence[int]) -> int:
    """Rows of an array of a shape `[N, ...]`, float32, that share a checksum."""
    return max(1, BLOCK_BYTES // max(1, 4 * int(np.prod(shape[1:]))))


def block_sums(array: np.ndarray) -> list[int]:
    """The CRC-32 of each block of rows of an array `[N, ...]`."""
    step = rows_of_block(array.shape)
    return [zlib.crc32(np.ascontiguousarray(array[start : start + step]).data) for start in range(0, len(array), step)]


def write_facts(path: Path, facts: dict[str, object], shape: Sequence[int], sums: Sequence[int]) -> None:
    """Write the facts of an entry beside its array at `path`, with the array's shape and checksums."""
    said = {"schema": SCHEMA, **facts, "array": {"shape": list(shape), "crc32": list(sums)}}
    write_atomically(path.with_suffix(".json"), lambda file: file.write(json.dumps(said, indent=1).encode()))
    logger.info("features cached in %s", path)


def warn_not_cached(error: OSError) -> None:
    """Say that the cache cannot be written, and what to do."""
    logger.warning(
        "features are not cached (%s): set %s to a folder with free space, or to %s", error, CACHE_VARIABLE, CACHE_OFF
    )


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
    """The array of a file, or None if there is no whole one of that length; a damaged one is removed."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        _check(array, path, count)
    except FileNotFoundError as error:
        if not path.exists():
            return None
        reason: Exception = ValueError(f"{os.path.basename(error.filename)} beside it is gone")
    except Exception as error:  # a damaged header makes numpy raise almost anything
        reason = error
    else:
        return torch.from_numpy(array)
    logger.warning("the feature cache's %s is damaged and is made again: %s", path, reason)
    if not isinstance(reason, OSError):
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _check(array: np.ndarray, path: Path, count: int | None) -> None:
    """Raise an error unless an array is, to the bit, the one that was put under the name of `path`."""
    facts = json.loads(path.with_suffix(".json").read_bytes())
    written = facts.pop("array")
    if facts.pop("schema") != SCHEMA or entry_name(facts) != path.stem:
        raise UserError(f"the facts in {path.with_suffix('.json').name} are those of another entry")
    if array.dtype != np.dtype("<f4") or not array.flags.c_contiguous or list(array.shape) != written["shape"]:
        raise UserError(f"holds {array.dtype} {list(array.shape)}, not float32 {written['shape']}")
    if count is not None and array.shape[:1] != (count,):
        raise UserError(f"holds {list(array.shape)}, not {count} rows")
    sums = block_sums(array)
    if sums != written["crc32"]:
        wrong = sum(a != b for a, b in zip(sums, written["crc32"]))
        raise UserError(f"{wrong} of {len(sums)} checksums are others")
