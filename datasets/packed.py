"""Data sets in a form that no loader reads: archives, and copies of the Hugging Face hub. What it is, and what to do.

Hub copies come as parquet files (`data/train-00000-of-00001.parquet`), as the arrow folders of `save_to_disk`
(`dataset_info.json`, `state.json`), and as `imagefolder` (images beside `metadata.csv` or `metadata.jsonl`).
"""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterable
from pathlib import Path

from dassl_clip.results.files import is_web_page

from .folders import ARCHIVES, list_folder, unpack_command, walk_folders
from .spec import listed, name_key

DEPTH, MOST = 4, 300  # of a hub cache: datasets--owner--name/snapshots/revision/data; folders looked into
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARROW = ("state.json", "dataset_dict.json")
EXPORT = 'docs/datasets.md, "Copies from the Hugging Face hub", has the lines that write its images into folders'


def packed(root: Path, names: Iterable[str] = ()) -> list[str]:
    """A sentence for each kind of packed data at or below a folder; empty if there is none.

    Of archives, those that are called like the data set, by its `names`, are named first.
    """
    archives: list[Path] = []
    texts: dict[str, str] = {}
    for folder in itertools.islice(walk_folders(root, DEPTH), MOST):
        with contextlib.suppress(OSError):
            for kind, text in hub_copies(folder).items():
                texts.setdefault(kind, text)
            archives += [folder / name for name in list_folder(folder)[1] if name.lower().endswith(ARCHIVES)]
    keys = tuple(map(name_key, names))
    archives.sort(key=lambda path: not name_key(path.name).startswith(keys or ("",)))
    said = []
    for path in archives[:3]:
        try:
            with open(path, "rb") as file:
                start = file.read(512)
        except OSError as error:
            said.append(f"{path} cannot be read: {error.strerror}")
            continue
        if not start:
            said.append(f"{path} is empty (0 bytes): get it again")
        elif is_web_page(start):
            said.append(f"{path} is a web page, not an archive: the download failed; get it again")
        else:
            said.append(f"{path} is an archive: unpack it first ({unpack_command(path)})")
    if len(archives) > 3:
        said[-1] += f", and {len(archives) - 3} more"
    return [*said, *texts.values()]


def hint(root: Path, names: Iterable[str] = ()) -> str:
    """`packed` as the end of an error; starts with a blank, or is empty."""
    return "".join(f" {text}." for text in packed(root, names))


def hub_copies(folder: Path) -> dict[str, str]:
    """Kind -> sentence, of what a folder itself holds of the hub's formats."""
    files, found = list_folder(folder)[1], {}
    parquet = [name for name in files if name.lower().endswith(".parquet") and name != METADATA[2]]
    if parquet:
        found["parquet"] = (
            f"{folder} holds {len(parquet)} parquet file{'' if len(parquet) == 1 else 's'} ({listed(parquet, 2)}), a "
            f"copy from the Hugging Face hub, which no loader reads: {EXPORT}"
        )
    arrow = [name for name in files if name.lower().endswith(".arrow")]
    if any(name in files for name in ARROW) or ("dataset_info.json" in files and arrow):
        marks = [name for name in files if name in ARROW] + arrow
        found["arrow"] = (
            f"{folder} is an arrow folder of `save_to_disk` ({listed(marks, 3)}), which no loader reads: {EXPORT}"
        )
    path = next((folder / name for name in METADATA if name in files), None)
    if path is None:
        return found
    what, advice = f"{path} lists images, as `imagefolder` of the Hugging Face hub has it", ""
    if path.suffix != ".csv":
        advice = ", which no loader reads: write it as metadata.csv with the columns file_name and label"
    else:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            columns = next(csv.reader(io.StringIO(file.readline(10_000))), [])
        advice = f": it is read by DATASET.NAME Manifest with DATASET.MANIFEST {path}"
        if "file_name" not in columns or not {"label", "class"} & set(columns):
            advice = (
                f", but with the columns {listed(columns)}: with file_name and label (the name of the class) it is "
                "read by DATASET.NAME Manifest"
            )
    return found | {"metadata": what + advice}
