"""Arrays of the feature cache that are written row after row: memory stays flat, and a killed extraction goes on.

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
        unchanged: Asked when all rows are made; if False, they are used but not kept.

    Returns:
        A float32 tensor on the CPU, memory-mapped where it could be kept (changes stay in memory).
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
        return _filled(_Rows(count), make).values
    path = folder / feature_cache.FOLDER / f"{feature_cache.entry_name(facts)}.npy"
    found = feature_cache.read_array(path, count)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(feature_cache.turn(path))
        except OSError as error:
            feature_cache.warn_not_kept(error)
            return _filled(_Rows(count), make).values
        found = feature_cache.read_array(path, count)  # made by another process meanwhile
        return _made(path, facts, count, make, unchanged) if found is None else found


def partial_path(path: Path) -> Path:
    """Where the array of a path lies while it is made."""
    return path.with_name(f".{path.stem}.part")


def _made(path: Path, facts: dict[str, object], count: int, make: Maker, unchanged: Callable[[], bool]) -> Tensor:
    """The array, made from where an earlier process left off; an interruption leaves its rows on the disk."""
    rows = _Rows(count, partial_path(path))
    try:
        return _filled(rows, make).finish(path, facts, unchanged())
    except BaseException:
        rows.sync() if rows.done else rows.discard()
        raise
    finally:
        rows.close()


def _filled(rows: "_Rows", make: Maker) -> "_Rows":
    """The rows with all of them made."""
    if rows.done < rows.count:
        for batch in make(rows.done):
            rows.append(batch)
    if rows.done < rows.count:
        raise UserError(f"only {rows.done} of {rows.count} rows were made")
    return rows


class _Rows:
    """An array that is filled from its first row to its last: in a file as long as that works, else in memory.

    Args:
        count: Its length.
        path: The partial file, which this process holds; None for memory.

    Attributes:
        done: Rows that are there.
        values: The array, where it is in memory.
    """

    def __init__(self, count: int, path: Path | None = None):
        self.count, self.path, self.done = count, path, 0
        self.values: Tensor | None = None
        self._file, self._shape, self._synced = None, None, time.monotonic()
        self._start, self._sums = 0, []  # where the rows begin in the file, and the checksums of their blocks
        if path is not None:
            self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed by `close`)
            self._find()

    def _find(self) -> None:
        """Resume where the file was left, if its rows are, to the bit, those that its progress speaks of."""
        if not self._progress.exists():
            return
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            said = json.loads(self._progress.read_bytes())
            done = int(said["rows"])
            if said["entry"] != self.path.stem[1:] or not 0 < done <= self.count:
                raise UserError(f"{self._progress.name} speaks of {done} rows of {said['entry']}")
            if array.dtype != np.dtype("<f4") or not array.flags.c_contiguous or len(array) != self.count:
                raise UserError(f"holds {array.dtype} {list(array.shape)}, not {self.count} rows of float32")
            if feature_cache.block_sums(array[:done]) != said["crc32"]:
                raise UserError("checksums are others")
        except Exception as error:  # a damaged header makes numpy raise almost anything
            logger.warning("%s is damaged, and its features are made from the first on: %s", self.path, error)
            return
        logger.info("features: %d of %d are there already (%s)", done, self.count, self.path)
        self._shape, self.done, self._start, self._sums = array.shape, done, array.offset, said["crc32"]
        self._file.seek(self._start + array[:done].nbytes)

    @property
    def _progress(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def append(self, batch: Tensor) -> None:
        """Put the next rows `[B, ...]`."""
        rows = batch.detach().float().cpu().contiguous()
        shape = (self.count, *rows.shape[1:])
        if self._shape is None:
            self._shape = shape
            self._in_file(lambda: self._begin(shape))
        if shape != tuple(self._shape) or self.done + len(rows) > self.count:
            raise UserError(f"rows {list(rows.shape)} do not fit {list(self._shape)} after {self.done} rows")
        self._in_file(lambda: self._write(rows))
        if self._file is None:
            self.values[self.done : self.done + len(rows)] = rows
        self._add_sums(rows.numpy())
        self.done += len(rows)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def _write(self, rows: Tensor) -> None:
        self._file.write(rows.numpy().data)
        self._file.flush()

    def _add_sums(self, rows: np.ndarray) -> None:
        """Continue the checksums, those of `block_sums` of all rows, with rows that follow the last one."""
        step, first = feature_cache.rows_of_block(self._shape), 0
        while first < len(rows):
            inside = (self.done + first) % step
            part = rows[first : first + step - inside]
            before = self._sums.pop() if inside else 0
            self._sums.append(zlib.crc32(part, before))
            first += len(part)

    def _begin(self, shape: tuple[int, ...]) -> None:
        """A new file of the final size, without rows."""
        self._progress.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self._file.truncate(self._start + 4 * int(np.prod(shape)))

    def sync(self) -> None:
        """Bring the rows to the disk, then say so."""
        self._synced = time.monotonic()
        if self._shape is not None:
            self._in_file(self._sync)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        said = {"entry": self.path.stem[1:], "rows": self.done, "crc32": self._sums}
        write_atomically(self._progress, lambda file: file.write(json.dumps(said).encode()))

    def _in_file(self, act: Callable[[], object]) -> None:
        """Do something with the file; if the disk refuses, go on in memory with the rows so far."""
        if self._file is not None:
            try:
                act()
                return
            except OSError as error:
                feature_cache.warn_not_kept(error)
            self.values = self._loaded()
            self.discard()
        elif self.values is None:
            self.values = torch.empty(self._shape)

    def _loaded(self) -> Tensor:
        """The rows so far, in memory; the open file has them even where its name is gone."""
        values = torch.empty(self._shape)
        if self.done:
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY) as content:
                rows = torch.frombuffer(content, dtype=values.dtype, offset=self._start, count=values.numel())
                values[: self.done] = rows.view(self._shape)[: self.done]
                del rows
        return values

    def discard(self) -> None:
        """Remove the file."""
        self.close()
        for path in (self.path, self._progress):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the file go; what it holds stays."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def finish(self, path: Path, facts: dict[str, object], keep: bool) -> Tensor:
        """The whole array, in its place in the cache if it can be kept."""
        self.sync()
        if self._file is None:
            return self.values
        if not keep:
            logger.warning("features are not kept: files have changed while they were read")
            values = self._loaded()
            self.discard()
            return values
        try:
            feature_cache.write_facts(path, facts, self._shape, self._sums)
            os.replace(self.path, path)
        except OSError as error:
            feature_cache.warn_not_kept(error)
            values = self._loaded()
            self.discard()
            return values
        self._progress.unlink(missing_ok=True)
        found = feature_cache.read_entry(path.stem)
        return self._loaded() if found is None else found
