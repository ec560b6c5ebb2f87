"""Features of frozen towers, cached on disk under the hash of all that made them.

An entry is a pair of files in the cache folder (`extraction.py`): `<hash>.npy`, an array that is mapped to memory, and
`<hash>.json`, the facts whose hash is the name, with the array's shape and checksums. The facts hold the hash of the
weights, the preprocessing, the precision, and path, size, inode and times of every image (or every text), so that a
changed image, model or transform has another name and is never served stale.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torch import Tensor

from dassl_clip.results import locking
from dassl_clip.results.files import cache_dir
from dassl_clip.results.image_rows import file_of

from . import distributed, signals
from .extraction import Maker, PartialFile, Rows, entry_name, partial_path, read_array, warn_not_cached
from .paths import FEATURE_FOLDER

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def image_facts(paths: Sequence[str]) -> dict[str, object]:
    """What names a list of image files: their number, and one hash over path, size, times and inode of each, in order.

    The modification time alone can be set back (`cp -p`, `rsync --times`, archives that give every file the time 0).
    The time of the last change of status (ctime) cannot, and a file in another one's place has another inode. The
    device is left out: its number differs between machines that mount one file system. Of a row these are the facts of
    the file around it.
    """
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(file_of(path))
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


def read_entry(name: str) -> Tensor | None:
    """The array of an entry, float32 and memory-mapped, or None if it is not in the cache."""
    folder = cache_dir()
    return None if folder is None else read_array(folder / FEATURE_FOLDER / f"{name}.npy", quiet=True)


def cached(facts: dict[str, object], make: Callable[[], Tensor]) -> Tensor:
    """The same as `cached_rows` for an array that `make` computes as a whole."""
    return cached_rows(facts, None, lambda start: iter([make()]), lambda: True)


def cached_rows(facts: dict[str, object], count: int | None, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """The array `[N, ...]` that `facts` name: read from the cache, or made batch after batch and put there.

    Several processes call it together: the main one reads and writes, and all make.

    Args:
        facts: JSON-able; everything that decides the values.
        count: `N`, at least 1; None: the length of the only batch.
        make: Given a row, yields batches of rows `[B, ...]` from there to the last; called with 0, or with the end of
            a batch that an earlier call gave.
        unchanged: Asked when all rows are made; if False, they are used but not cached.

    Returns:
        A float32 tensor on the CPU, memory-mapped where it could be cached (changes stay in memory).
    """
    if distributed.world_size() > 1 and not distributed.is_main():
        distributed.follow(lambda start: deque(make(start), maxlen=0))
        return distributed.main_array(read_entry(entry_name(facts)))
    values = _cached_rows(facts, count, distributed.announced(make), unchanged)
    if distributed.world_size() > 1:
        distributed.announce_end()
    return distributed.main_array(values)


def _cached_rows(facts: dict[str, object], count: int | None, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """`cached_rows`, in the main process."""
    folder = cache_dir()
    if folder is None:
        return Rows(count).fill(make)
    path = folder / FEATURE_FOLDER / f"{entry_name(facts)}.npy"
    array = read_array(path, count)
    if array is not None:
        return array
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(turn(path, str(facts.get("kind", "features"))))
        except OSError as error:
            warn_not_cached(error)
            return Rows(count).fill(make)
        array = read_array(path, count)  # made by another process meanwhile
        if array is not None:
            return array
        file = PartialFile(partial_path(path), count)
        rows = Rows(count, file)
        try:  # from where an earlier process left off; an interruption leaves the rows on the disk
            values = rows.fill(make)
            return values if rows.file is None else file.finish(path, facts, unchanged())
        except BaseException:
            if rows.file is not None:
                file.leave()
            raise
        finally:
            file.close()


@contextlib.contextmanager
def turn(path: Path, what: str = "features") -> Iterator[None]:
    """Be the one process that makes the entry at a path; waits while another one is, and says so.

    Raises:
        OSError: Nothing can be written there.
        Terminated: A stop was requested while this process waited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.stem}.lock")
    waits = False
    while (held := locking.acquire(place, 0.0)) is None:
        if not waits:
            logger.info("waiting: another process makes the same %s, which this run then reads (%s)", what, path)
        waits = True
        signals.raise_if_stopped()
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        held.release(remove=True)
