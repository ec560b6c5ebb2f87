"""Arrays of the feature cache that are written row after row: memory stays flat, and a killed extraction resumes.

While an array is made it lies beside the finished ones as `.<hash>.part`, already in its final form and size, and
`.<hash>.part.json` says how many of its rows are on the disk for certain, and their checksums. The hash is that of the
array's facts: what another run left behind is found again, and is found no more once an image, the model or a setting
has changed. The makers of one array take turns: the second waits, and reads what the first has made.
"""

import contextlib
import json
import logging
import mmap
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import cache_dir, write_atomically

from . import distributed, feature_cache

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0  # a killed extraction loses the rows of so many seconds

Maker = Callable[[int], Iterator[Tensor]]


def cached_rows(facts: dict[str, object], count: int, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """The array `[N, ...]` that `facts` name: read from the cache, or made batch after batch and put there.

    Several processes call it together: the main one reads and writes, and all make.

    Args:
        facts: JSON-able; everything that decides the values.
        count: `N`, at least 1.
        make: Given a row, yields batches of rows `[B, ...]` from there to the last; called with 0, or with the end of
            a batch that an earlier call gave.
        unchanged: Asked when all rows are made; if False, they are used but not cached.

    Returns:
        A float32 tensor on the CPU, memory-mapped where it could be cached (changes stay in memory).
    """
    if distributed.world_size() == 1:
        return _cached_rows(facts, count, make, unchanged)
    if not distributed.is_main():
        distributed.follow(lambda start: deque(make(start), maxlen=0))
        return distributed.main_array(feature_cache.read_entry(feature_cache.entry_name(facts)))
    values = _cached_rows(facts, count, distributed.announced(make), unchanged)
    distributed.announce_end()
    return distributed.main_array(values)


def _cached_rows(facts: dict[str, object], count: int, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """`cached_rows`, in one process."""
    folder = cache_dir()
    if folder is None:
        return _Rows(count).fill(make)
    path = folder / feature_cache.FOLDER / f"{feature_cache.entry_name(facts)}.npy"
    array = feature_cache.read_array(path, count)
    if array is not None:
        return array
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(feature_cache.turn(path))
        except OSError as error:
            feature_cache.warn_not_cached(error)
            return _Rows(count).fill(make)
        array = feature_cache.read_array(path, count)  # made by another process meanwhile
        return _made(path, facts, count, make, unchanged) if array is None else array


def partial_path(path: Path) -> Path:
    """Where the array of a path lies while it is made."""
    return path.with_name(f".{path.stem}.part")


def _made(path: Path, facts: dict[str, object], count: int, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """The array, made from where an earlier process left off; an interruption leaves its rows on the disk."""
    file = _PartialFile(partial_path(path), count)
    rows = _Rows(count, file)
    try:
        values = rows.fill(make)
        return values if rows.file is None else file.finish(path, facts, unchanged())
    except BaseException:
        if rows.file is not None:
            file.leave()
        raise
    finally:
        file.close()


class _Rows:
    """An array that is filled from its first row to its last: in a file as long as that works, else in memory.

    Args:
        count: Its length.
        file: The partial file, which this process holds; None for memory.
    """

    def __init__(self, count: int, file: "_PartialFile | None" = None):
        self.count, self.file = count, file
        self.done, self.shape = (0, ()) if file is None else (file.done, file.shape)
        self.values = torch.empty(0)

    def fill(self, make: Maker) -> Tensor:
        """Make the rows that are missing; returns the array, or an empty one where the rows are in the file."""
        for batch in make(self.done) if self.done < self.count else ():
            self._append(batch.detach().float().cpu().contiguous())
        if self.done < self.count:
            raise UserError(f"only {self.done} of {self.count} rows were made")
        return self.values

    def _append(self, rows: Tensor) -> None:
        shape = (self.count, *rows.shape[1:])
        self.shape = self.shape or shape
        if shape != self.shape or self.done + len(rows) > self.count:
            raise UserError(f"rows {list(rows.shape)} do not fit {list(self.shape)} after {self.done} rows")
        if self.file is None and not self.done:
            self.values = torch.empty(shape)
        elif self.file is not None:
            try:
                self.file.append(rows, shape)
            except OSError as error:  # the disk refuses
                feature_cache.warn_not_cached(error)
                self.values, self.file = self.file.moved_to_memory(), None
        if self.file is None:
            self.values[self.done : self.done + len(rows)] = rows
        self.done += len(rows)


class _PartialFile:
    """The file of an array that is being made, and beside it that of its progress.

    Args:
        path: Where it lies; this process holds it.
        count: Rows of the whole array.

    Attributes:
        shape: Shape of the whole array; empty until the first rows are there.
        done: Rows that are there.
    """

    def __init__(self, path: Path, count: int):
        self.path, self.progress = path, path.with_name(f"{path.name}.json")
        self.shape: tuple[int, ...] = ()
        self.done = 0
        self._start = 0  # the byte at which the rows begin
        self._sums: list[int] = []  # checksums of their blocks
        self._synced = time.monotonic()
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed by `close`)
        if self.progress.exists():
            self._resume(count)

    def _resume(self, count: int) -> None:
        """Resume where the file was left, if its rows are, to the bit, those that its progress speaks of."""
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            said = json.loads(self.progress.read_bytes())
            done = int(said["rows"])
            if said["entry"] != self.path.stem[1:] or not 0 < done <= count:
                raise UserError(f"{self.progress.name} speaks of {done} rows of {said['entry']}")
            if array.dtype != np.dtype("<f4") or not array.flags.c_contiguous or len(array) != count:
                raise UserError(f"holds {array.dtype} {list(array.shape)}, not {count} rows of float32")
            if feature_cache.block_sums(array[:done]) != said["crc32"]:
                raise UserError("checksums are others")
        except Exception as error:  # a damaged header makes numpy raise almost anything
            logger.warning("%s is damaged, and its features are made from the first on: %s", self.path, error)
            return
        logger.info("features: %d of %d are there already (%s)", done, count, self.path)
        self.shape, self.done, self._start, self._sums = array.shape, done, array.offset, said["crc32"]
        self._file.seek(self._start + array[:done].nbytes)

    def append(self, rows: Tensor, shape: tuple[int, ...]) -> None:
        """Write the next rows `[B, ...]` of an array of a shape."""
        if not self.shape:
            self.shape = shape
            self._begin()
        self._file.write(rows.numpy().data)
        self._file.flush()
        self._add_sums(rows.numpy())
        self.done += len(rows)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def _begin(self) -> None:
        """A new file of the final size, without rows."""
        self.progress.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self._file.truncate(self._start + 4 * int(np.prod(self.shape)))

    def _add_sums(self, rows: np.ndarray) -> None:
        """Continue the checksums, those of `block_sums` of all rows, with rows that follow the last one."""
        step, first = feature_cache.rows_of_block(self.shape), 0
        while first < len(rows):
            inside = (self.done + first) % step
            part = rows[first : first + step - inside]
            before = self._sums.pop() if inside else 0
            self._sums.append(zlib.crc32(part.data, before))
            first += len(part)

    def sync(self) -> None:
        """Bring the rows to the disk, then say so."""
        self._synced = time.monotonic()
        os.fsync(self._file.fileno())
        said = {"entry": self.path.stem[1:], "rows": self.done, "crc32": self._sums}
        write_atomically(self.progress, lambda file: file.write(json.dumps(said).encode()))

    def finish(self, path: Path, facts: dict[str, object], cache: bool) -> Tensor:
        """The whole array, in its place in the cache if `cache` and the disk allow it."""
        try:
            self.sync()
            if cache:
                feature_cache.write_facts(path, facts, self.shape, self._sums)
                os.replace(self.path, path)
                self.progress.unlink(missing_ok=True)
                array = feature_cache.read_entry(path.stem)
                return self._loaded() if array is None else array
            logger.warning("features are not cached: files have changed while they were read")
        except OSError as error:
            feature_cache.warn_not_cached(error)
        return self.moved_to_memory()

    def leave(self) -> None:
        """At an interruption: what was written stays for the next process, a file without rows goes."""
        try:
            if self.done and not self._file.closed:
                self.sync()
                return
        except OSError as error:
            feature_cache.warn_not_cached(error)
        self._discard()

    def moved_to_memory(self) -> Tensor:
        """The array with the rows so far; the file is removed."""
        values = self._loaded()
        self._discard()
        return values

    def _loaded(self) -> Tensor:
        """The rows so far, in memory; the open file has them even where its name is gone."""
        values = torch.empty(self.shape)
        if self.done:
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY) as content:
                rows = torch.frombuffer(content, dtype=values.dtype, offset=self._start, count=values.numel())
                values[: self.done] = rows.view(self.shape)[: self.done]
                del rows  # the map cannot be closed under it
        return values

    def _discard(self) -> None:
        self.close()
        for path in (self.path, self.progress):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the file go; what it holds stays."""
        with contextlib.suppress(OSError):
            self._file.close()
