"""The files of the feature cache: arrays that are written row after row, and read to the last bit or not at all.

While an array is made it lies beside the finished ones as `.<hash>.part`, already in its final form and size, and
`.<hash>.part.json` says how many of its rows are on the disk for certain, and their checksums. Memory stays flat, and a
killed extraction resumes. The hash is that of the array's facts: what another run left behind is found again, and is
found no more once an image, the model or a setting has changed.

Every block of rows has a CRC-32, which is checked whenever an entry is opened. An entry of which a bit has changed, or
that lies under another one's name, is removed with a warning and made again. No pickles are written or read.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, write_atomically

logger = logging.getLogger(__name__)

SCHEMA = 4  # part of every name: raised when the same facts would give other features
BLOCK_BYTES = 2**22  # of the rows that share a checksum
SYNC_SECONDS = 5.0  # a killed extraction loses the rows of so many seconds

Maker = Callable[[int], Iterator[Tensor]]


def entry_name(facts: dict[str, object]) -> str:
    """The name of the entry that `facts` stand for."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **facts}, sort_keys=True).encode()).hexdigest()


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


def read_array(path: Path, count: int | None = None, quiet: bool = False) -> Tensor | None:
    """The array of a file, or None if there is no whole one; a damaged one is removed.

    Args:
        path: The file.
        count: Its length, where that is known.
        quiet: Neither say so, nor note the time of its use, for clearing up.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        _check(array, path, count)
    except FileNotFoundError as error:
        if error.filename == str(path) or not path.exists():  # another process may put it there the moment after
            return None
        reason: Exception = ValueError(f"{os.path.basename(error.filename)} beside it is gone")
    except Exception as error:  # a damaged header makes numpy raise almost anything
        reason = error
    else:
        if not quiet:
            logger.info("features %s read from %s", list(array.shape), path)
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)
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


def partial_path(path: Path) -> Path:
    """Where the array of a path lies while it is made."""
    return path.with_name(f".{path.stem}.part")


class Rows:
    """An array that is filled from its first row to its last: in a file as long as that works, else in memory.

    Args:
        count: Its length; None: that of the only batch.
        file: The partial file, which this process holds; None for memory.
    """

    def __init__(self, count: int | None, file: "PartialFile | None" = None):
        self.count, self.file = count, file
        self.done, self.shape = (0, ()) if file is None else (file.done, file.shape)
        self.values = torch.empty(0)

    def fill(self, make: Maker) -> Tensor:
        """Make the rows that are missing; returns the array, or an empty one where the rows are in the file."""
        if self.count is None:
            self.count = self.done or None
        for batch in make(self.done) if self.count is None or self.done < self.count else ():
            self._append(batch.detach().float().cpu().contiguous())
        if self.count is None or self.done < self.count:
            raise UserError(f"only {self.done} of {self.count} rows were made")
        return self.values

    def _append(self, rows: Tensor) -> None:
        self.count = len(rows) if self.count is None else self.count
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
                warn_not_cached(error)
                self.values, self.file = self.file.moved_to_memory(), None
        if self.file is None:
            self.values[self.done : self.done + len(rows)] = rows
        self.done += len(rows)


class PartialFile:
    """The file of an array that is being made, and beside it that of its progress.

    Args:
        path: Where it lies; this process holds it.
        count: Rows of the whole array; None: those that are there, which were made in one batch.

    Attributes:
        shape: Shape of the whole array; empty until the first rows are there.
        done: Rows that are there.
    """

    def __init__(self, path: Path, count: int | None):
        self.path, self.progress = path, path.with_name(f"{path.name}.json")
        self.shape: tuple[int, ...] = ()
        self.done = 0
        self._start = 0  # the byte at which the rows begin
        self._sums: list[int] = []  # checksums of their blocks
        self._synced = time.monotonic()
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed by `close`)
        if self.progress.exists():
            self._resume(count)

    def _resume(self, count: int | None) -> None:
        """Resume where the file was left, if its rows are, to the bit, those that its progress speaks of."""
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            said = json.loads(self.progress.read_bytes())
            done = int(said["rows"])
            count = done if count is None else count
            if said["entry"] != self.path.stem[1:] or not 0 < done <= count:
                raise UserError(f"{self.progress.name} speaks of {done} rows of {said['entry']}")
            if array.dtype != np.dtype("<f4") or not array.flags.c_contiguous or len(array) != count:
                raise UserError(f"holds {array.dtype} {list(array.shape)}, not {count} rows of float32")
            if block_sums(array[:done]) != said["crc32"]:
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
        step, first = rows_of_block(self.shape), 0
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
            os.fsync(self._file.fileno())
            if cache:
                write_facts(path, facts, self.shape, self._sums)
                os.replace(self.path, path)
                self.progress.unlink(missing_ok=True)
                array = read_array(path, quiet=True)
                return self._loaded() if array is None else array
            logger.warning("features are not cached: files have changed while they were read")
        except OSError as error:
            warn_not_cached(error)
        return self.moved_to_memory()

    def leave(self) -> None:
        """At an interruption: what was written stays for the next process, a file without rows goes."""
        try:
            if self.done and not self._file.closed:
                self.sync()
                return
        except OSError as error:
            warn_not_cached(error)
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
