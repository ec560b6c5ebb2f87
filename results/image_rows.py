"""Images inside parquet and arrow files, as the Hugging Face hub has them: found by address, read row by row.

The address of an image is `FILE#ROW`, such as `data/train-00000-of-00002.parquet#0412`, and stands wherever a path
does; rows count from 0 over the whole file and are written with the same number of digits. The column `image` is a
struct whose field `bytes` holds the encoded file, and `path` its name. A parquet file is read by row groups, of which
each process keeps those that it read last (`MAX_KEPT` bytes); an arrow file is mapped to memory. Nothing is opened
before it is asked for, so that each worker has files of its own.
"""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import json
import os
import re
import threading
from collections import OrderedDict
from typing import Any, BinaryIO

from .errors import UserError
from .files import check_regular, is_web_page

ENDINGS = (".parquet", ".arrow")
IMAGE = "image"
MAX_KEPT = 256 << 20  # bytes of row groups that a process keeps
MAX_GROUP = 1 << 30  # bytes of a row group, all of which are in memory when one image is read
ADDRESS = re.compile(r"(?s)(.+(?:\.parquet|\.arrow))#(\d+)")
INSTALL = "pip install pyarrow, or dassl-clip with the extra hub"


def split_address(path: str | os.PathLike[str]) -> tuple[str, int] | None:
    """File and row of an address; None for the path of a file."""
    match = ADDRESS.fullmatch(os.fsdecode(path))
    return (match[1], int(match[2])) if match else None


def file_of(path: str | os.PathLike[str]) -> str:
    """The file on the disk: that of an address, or the path itself."""
    address = split_address(path)
    return address[0] if address else os.fsdecode(path)


def open_image(path: str | os.PathLike[str]) -> BinaryIO:
    """The encoded image at a path or an address, to be read.

    Raises:
        OSError: there is none, or the file around it is damaged; of an address the message does not name it.
    """
    if (address := split_address(path)) is None:
        return open(path, "rb")
    return io.BytesIO(_readable(*address).image(address[1]))


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of the encoded image at a path or an address.

    Raises:
        OSError: as `open_image`.
    """
    if (address := split_address(path)) is None:
        return os.stat(path).st_size
    return _readable(*address).size(address[1])


def open_table(path: str | os.PathLike[str]) -> Table:
    """A parquet or arrow file, opened once as long as it stays the same.

    Raises:
        OSError: it cannot be opened.
        UserError: it is no whole file of its kind, or pyarrow is not installed.
    """
    check_regular(path)
    state = os.stat(path)
    return _open(os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)


def _readable(file: str, row: int) -> Table:
    try:
        table = open_table(file)
    except UserError as error:
        raise OSError(str(error)) from error
    if row >= table.rows:
        raise OSError(f"the file has {table.rows:,} rows, counted from 0")
    return table


@functools.lru_cache(maxsize=1024)
def _open(path: str, *state: int) -> Table:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} is read with the package pyarrow, which is not installed: {INSTALL}") from error
    try:
        return (Parquet if path.endswith(".parquet") else Arrow)(path)
    except Exception as error:  # damaged files make their readers raise almost anything
        with open(path, "rb") as file:
            start = file.read(64)
        reason = f"is not a whole {path.rpartition('.')[2]} file ({_said(error)})"
        if is_web_page(start):
            reason = "is a web page: the download failed"
        elif start.startswith(b"version https://git-lfs"):
            reason = "is the pointer of git-lfs to a file that was not fetched"
        raise UserError(f"{path} {reason}; get it again") from error


class Table:
    """A file of rows.

    Attributes:
        path: where it lies.
        rows: how many it has.
        types: column -> its type in pyarrow's words.
        names: column -> the class names by number that its `huggingface` metadata state.
    """

    def __init__(self, path: str, rows: int, schema: Any):
        self.path, self.rows = path, rows
        self.types = {field.name: str(field.type) for field in schema}
        self.names = label_names((schema.metadata or {}).get(b"huggingface", b""))
        self._sizes: dict[int, list[int]] = {}
        self._digits = len(str(rows - 1))

    def address(self, row: int) -> str:
        """The address of a row; addresses of one file sort as its rows do."""
        return f"{self.path}#{str(row).rjust(self._digits, '0')}"

    def column(self, name: str, field: str = "") -> list[Any]:
        """The values of a column, or of a field of a struct, in all rows.

        Raises:
            UserError: the file is damaged.
        """
        import pyarrow.compute as pc

        try:
            values = self._column(name, field)
            found: list[Any] = (pc.struct_field(values, field) if field else values).to_pylist()
            return found
        except Exception as error:
            raise UserError(f"{self.path}: its column {name} cannot be read ({_said(error)}); get it again") from error

    def image(self, row: int) -> bytes:
        """The encoded image of a row."""
        group, offset = self._place(row)
        value = _kept(self, group)[offset].as_py()
        if not value or value["bytes"] is None:
            raise OSError("the row holds no bytes, at most the name of a file elsewhere")
        return bytes(value["bytes"])

    def size(self, row: int) -> int:
        """Bytes of the encoded image of a row, 0 where there is none; those of a row group are read together."""
        group, offset = self._place(row)
        if group not in self._sizes:
            import pyarrow.compute as pc

            sizes = pc.binary_length(pc.struct_field(_kept(self, group), "bytes"))
            self._sizes[group] = [size or 0 for size in sizes.to_pylist()]
        return self._sizes[group][offset]

    def load(self, group: int) -> tuple[Any, int]:
        """The column of images of a row group, and its bytes in memory."""
        raise NotImplementedError

    def _place(self, row: int) -> tuple[int, int]:
        """Row group of a row, and where it is in that."""
        raise NotImplementedError

    def _column(self, name: str, field: str) -> Any:
        """A column as a whole; of a struct at least the field."""
        raise NotImplementedError


class Parquet(Table):
    """A parquet file."""

    def __init__(self, path: str):
        from pyarrow import parquet

        self.file = parquet.ParquetFile(path)
        facts = self.file.metadata
        super().__init__(path, facts.num_rows, self.file.schema_arrow)
        counts = (facts.row_group(group).num_rows for group in range(facts.num_row_groups))
        self.starts = [0, *itertools.accumulate(counts)]

    def load(self, group: int) -> tuple[Any, int]:
        size = self.file.metadata.row_group(group).total_byte_size
        if size > MAX_GROUP:
            raise OSError(
                f"its {size >> 20} MiB would be read as a whole, and at most {MAX_GROUP >> 20} MiB are: write the file "
                "again with 100 rows in a group"
            )
        column = self.file.read_row_group(group, columns=[f"{IMAGE}.bytes"], use_threads=False)[IMAGE]
        return column, column.nbytes

    def _place(self, row: int) -> tuple[int, int]:
        group = bisect.bisect_right(self.starts, row) - 1
        return group, row - self.starts[group]

    def _column(self, name: str, field: str) -> Any:
        return self.file.read(columns=[f"{name}.{field}" if field else name], use_threads=False).column(0)


class Arrow(Table):
    """An arrow file as `save_to_disk` writes it, a stream, or with a footer."""

    def __init__(self, path: str):
        import pyarrow as pa

        source = pa.memory_map(path)
        try:
            self.table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            self.table = pa.ipc.open_file(source).read_all()
        super().__init__(path, self.table.num_rows, self.table.schema)

    def load(self, group: int) -> tuple[Any, int]:
        return self.table[IMAGE], 0  # mapped: the pages of an image are read with it

    def _place(self, row: int) -> tuple[int, int]:
        return 0, row

    def _column(self, name: str, field: str) -> Any:
        return self.table[name]


def label_names(metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Column -> class names by number, of the hub's description of a file; empty where it says nothing of that."""
    try:
        features = json.loads(metadata or b"{}").get("info", {}).get("features", {})
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (ValueError, AttributeError, RecursionError):
        return {}


_groups: OrderedDict[tuple[Table, int], tuple[Any, int]] = OrderedDict()  # the row groups that were read last
_kept_bytes = 0
_lock = threading.Lock()


def _kept(table: Table, group: int) -> Any:
    """The column of images of a row group, read or kept."""
    global _kept_bytes
    key = (table, group)
    with _lock:
        if key in _groups:
            _groups.move_to_end(key)
            return _groups[key][0]
        try:
            _groups[key] = table.load(group)
        except Exception as error:
            raise OSError(f"the row group around it cannot be read: {_said(error)}") from error
        _kept_bytes += _groups[key][1]
        while len(_groups) > 1 and _kept_bytes > MAX_KEPT:
            _kept_bytes -= _groups.popitem(last=False)[1][1]
        return _groups[key][0]


def forget() -> None:
    """Close all files and let go of the row groups; after a fork, in which no place in a file and no lock that is held
    may be shared with the parent, this is done by itself."""
    global _lock, _kept_bytes
    _lock, _kept_bytes = threading.Lock(), 0
    _groups.clear()
    _open.cache_clear()


os.register_at_fork(after_in_child=forget)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
