"""Copies of data sets in the forms of the Hugging Face hub: finding them, and their rows.

Parquet files have the columns `image` (a struct of `bytes` and `path`), `label` and, for a data set with domains,
`domain`; so have the arrow files of `save_to_disk`. An `imagefolder` has the images as files, which `metadata.csv` or
`metadata.jsonl` beside them names (`file_name`, `label`, `domain`). The part of a split is in the name of the file or
of its folder: `train-00000-of-00002.parquet`, `validation/data-00000-of-00001.arrow`, `test/metadata.csv`. Only the
small columns are read here, no image.
"""

import csv
import functools
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.image_rows import ENDINGS, IMAGE, Table, label_names, open_table

from .folders import PART_KEYS, WRAPPERS, list_folder, read_text, readable_csv, walk_folders
from .spec import listed

DEPTH, MOST = 4, 300  # of a hub cache: datasets--owner--name/snapshots/revision/data; folders looked into
LABEL, DOMAIN = "label", "domain"
METADATA = ("metadata.csv", "metadata.jsonl")
STEPS = (*WRAPPERS, "default", "datasets", "snapshots", *PART_KEYS)  # folders inside a copy
CACHED = re.compile(r"datasets--.+--(.+)|[0-9a-f]{4,40}")  # in the hub's cache: a data set, a revision
SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")
SCRATCH = ("cache-", "tmp", "indices")  # arrow files that are no rows of a data set


class Row(NamedTuple):
    """An image of a copy: where it lies, the name or else the number (-1: none) of its class, its domain and part, and
    the name of its file, as far as the copy has them."""

    path: str
    name: str
    number: int
    domain: str
    part: str
    file: str


@dataclass(frozen=True)
class Copy:
    """A copy of a data set.

    Attributes:
        home: its folder.
        text: what it is, for the layout.
        rows: the images with a label, in the order of the files.
        names: class names by number, of the files' own description; None where it has none.
        columns: of its files.
    """

    home: Path
    text: str
    rows: tuple[Row, ...]
    names: tuple[str, ...] | None
    columns: tuple[str, ...]


def find_copy(root: Path, names: Sequence[str] = ()) -> Copy | None:
    """The copy in a folder, or in one below it; None if there is none.

    Args:
        root: where to look.
        names: that the folder of the data set may have; without them all folders are looked into.

    Raises:
        UserError: there are several, shards are missing, or what lies there cannot be read.
    """
    found: dict[tuple[Path, str], list[Path]] = {}
    for folder in itertools.islice(table_folders(root, names) if names else walk_folders(root, DEPTH), MOST):
        home = folder.parent if name_key(folder.name) in PART_KEYS and folder != root else folder
        for name in list_folder(folder)[1]:
            if (kind := kind_of(name)) is not None:
                found.setdefault((home, kind), []).append(folder / name)
    if not found:
        return None
    if len(found) > 1:
        places = [f"{home} ({kind})" for home, kind in found]
        raise UserError(
            f"{root} holds {len(found)} copies in the forms of the Hugging Face hub: {listed(places, 4)}. Set "
            "DATASET.ROOT to the folder of one of them, or move the others away"
        )
    ((home, kind), paths) = next(iter(found.items()))
    states = [os.stat(path) for path in paths]
    return read_copy(home, kind, tuple(zip(paths, ((state.st_size, state.st_mtime_ns) for state in states))))


def kind_of(name: str) -> str | None:
    """What kind of copy a file belongs to."""
    if name in METADATA:
        return "imagefolder"
    ending = os.path.splitext(name)[1]
    return ending[1:] if ending in ENDINGS and not name.startswith((*SCRATCH, "metadata")) else None


def table_folders(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """The root, then the folders in it that are called like the data set or like a step inside a copy, and so on."""
    keys, level = {name_key(name) for name in (*names, *STEPS)}, [root]

    def fits(name: str) -> bool:
        cached = CACHED.fullmatch(name)
        return name_key(name) in keys or (cached is not None and name_key(cached[1] or "data") in keys)

    for _ in range(DEPTH + 1):
        yield from level
        level = [folder / name for folder in level for name in list_folder(folder)[0] if fits(name)]


@functools.lru_cache(maxsize=4)  # asked for by class list and layout, and for each domain that is looked at
def read_copy(home: Path, kind: str, files: tuple[tuple[Path, tuple[int, int]], ...]) -> Copy:
    """The copy in a folder, of its files with size and time of each."""
    paths = [path for path, _ in files]
    parts = {path: part_of(path, home) for path in paths}
    if "" in parts.values() and len(set(parts.values())) > 1:
        bare = [path.name for path, part in parts.items() if not part]
        raise UserError(
            f"{home}: {listed(bare, 3)} belong to no part of a split, while other files do "
            f"({listed(dict.fromkeys(filter(None, parts.values())))}): move them away, or name them by their part"
        )
    number = f"{len(paths)} {kind} file{'' if len(paths) == 1 else 's'}"
    if kind == "imagefolder":
        rows, columns = [], {}
        for path in paths:
            found, keys = metadata_rows(path, parts[path])
            rows, columns = rows + found, columns | dict.fromkeys(keys)
        return Copy(home, f"imagefolder in {home}", labelled(rows), None, tuple(columns))
    check_shards(paths)
    tables = {path: open_table(path) for path in paths}
    first = tables[paths[0]]
    for path, table in tables.items():
        if LABEL not in table.types or not re.match(r"struct<.*bytes: (large_)?binary", table.types.get(IMAGE, "")):
            raise UserError(
                f"{path} has the columns {listed(table.types)}; expected are {IMAGE} (a struct of bytes and path) and "
                f"{LABEL}, and {DOMAIN} if there are domains, as in the hub's copies of PACS and OfficeHome"
            )
        if names_of(table, path) != names_of(first, paths[0]) or (DOMAIN in table.types) != (DOMAIN in first.types):
            raise UserError(
                f"{paths[0]} and {path} differ in their columns or class names: keep one data set in {home}"
            )
    rows = [row for path, table in tables.items() for row in table_rows(table, names_of(table, path), parts[path])]
    return Copy(home, f"{number} in {home}", labelled(rows), names_of(first, paths[0]), tuple(first.types))


def part_of(path: Path, home: Path) -> str:
    """The part that a file is called by, or else its folder; empty where it is neither."""
    stem = SHARD.sub(r"\1", path.stem)
    words = re.split(r"[-_.]", stem)
    keys = [words[0], words[-1], *([path.parent.name] if path.parent != home else [])]
    return next((PART_KEYS[name_key(key)] for key in keys if name_key(key) in PART_KEYS), "")


def check_shards(paths: Sequence[Path]) -> None:
    """Refuse files called `-00001-of-00003` of which not all are there."""
    there: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := SHARD.fullmatch(path.stem):
            there.setdefault((path.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (folder, stem, count), numbers in there.items():
        if missing := sorted(set(range(count)) - numbers):
            names = [f"{stem}{'-' * bool(stem)}{number:05d}-of-{count:05d}{paths[0].suffix}" for number in missing]
            raise MissingFileError(f"{folder}: {len(missing)} of {count} files are missing: {listed(names, 4)}")


def names_of(table: Table, path: Path) -> tuple[str, ...] | None:
    """Class names by number: of the file itself, or of the `dataset_info.json` beside it."""
    if LABEL in table.names:
        return table.names[LABEL]
    info = path.with_name("dataset_info.json")
    if path.suffix != ".arrow" or not info.is_file():
        return None
    return label_names(b'{"info": ' + read_text(info).encode() + b"}").get(LABEL)


def table_rows(table: Table, names: tuple[str, ...] | None, part: str) -> Iterator[Row]:
    """The rows of a parquet or arrow file, without the images."""
    files: list[Any] = [None] * table.rows
    if "path:" in table.types[IMAGE]:
        files = table.column(IMAGE, "path")
    domains: list[Any] = table.column(DOMAIN) if DOMAIN in table.types else [""] * table.rows
    called = table.names.get(DOMAIN)
    for row, (label, domain, file) in enumerate(zip(table.column(LABEL), domains, files)):
        where = table.address(row)
        name, number = class_of(label, names, where)
        if called and isinstance(domain, int) and 0 <= domain < len(called):
            domain = called[domain]
        elif domain is None:
            raise UserError(f"{where} has no {DOMAIN}")
        yield Row(where, name, number, str(domain), part, os.path.basename(str(file or "").replace("\\", "/")))


def class_of(label: Any, names: tuple[str, ...] | None, where: str) -> tuple[str, int]:
    """Name and number of a label; "" and -1 for what is not known, of an image without a label both."""
    if label is None or (isinstance(label, int) and label == -1):  # -1: the hub's mark of a hidden label
        return "", -1
    if isinstance(label, str):
        return label.strip(), -1
    if not isinstance(label, int) or label < 0 or (names and label >= len(names)):
        known = f"one of the {len(names)} numbers from 0 on" if names else "a number from 0 on, or a name"
        raise UserError(f"{where}: its label is {label!r}; it must be {known}")
    return (names[label].strip() if names else ""), label


def metadata_rows(path: Path, part: str) -> tuple[list[Row], list[str]]:
    """The lines of `metadata.csv` or `metadata.jsonl`, whose files must be there, and the columns."""
    rows, missing, columns = [], [], {}
    for number, cells in read_metadata(path):
        where, columns = f"{path}, line {number}", columns | dict.fromkeys(cells)
        file = str(cells.get("file_name") or "")
        if not file or LABEL not in cells:
            raise UserError(f"{where} has {listed(cells)}; expected are file_name and {LABEL}, and {DOMAIN}")
        place = os.path.normpath(path.parent / file)
        if not os.path.isfile(place):
            missing.append(f"{file} (line {number})")
        label = cells[LABEL]
        label = int(label) if isinstance(label, str) and re.fullmatch(r"-?\d+", label.strip()) else label
        rows.append(Row(place, *class_of(label, None, where), str(cells.get(DOMAIN) or ""), part, Path(file).name))
    if missing:
        raise MissingFileError(f"{path}: {len(missing)} of {len(rows)} images are missing, first: {missing[0]}")
    return rows, list(columns)


def read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and cells of each line of a csv file with a header, or of a file with a JSON object a line."""
    text = read_text(path)
    if path.suffix == ".csv":
        with readable_csv(path):
            reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
            for cells in reader:
                if None in cells:
                    raise UserError(f"{path}, line {reader.line_num}: more cells than columns; quote cells with commas")
                yield reader.line_num, {key.strip(): value for key, value in cells.items()}
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(cells, dict):
            raise UserError(f'{path}, line {number} is no JSON object such as {{"file_name": ..., "label": ...}}')
        yield number, cells


def labelled(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without those parts in which no image has a label (hidden test labels); refuses single ones without."""
    hidden = {row.part for row in rows} - {row.part for row in rows if row.name or row.number >= 0}
    rows = [row for row in rows if row.part not in hidden]
    bare = next((row.path for row in rows if not row.name and row.number < 0), None)
    if bare is not None:
        raise UserError(f"{bare} has no label, while other images do")
    kinds = {bool(row.name) for row in rows}
    if len(kinds) > 1:
        number = next(row for row in rows if not row.name)
        raise UserError(f"{number.path} has the number {number.number} for a label, while others have names")
    return tuple(rows)
