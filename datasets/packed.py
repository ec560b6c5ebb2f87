"""Data sets in a form that the loader at hand does not read: archives, and copies of the Hugging Face hub.

What it is, and what to do. Hub copies come as parquet files (`data/train-00000-of-00001.parquet`), as the arrow folders
of `save_to_disk` (`dataset_info.json`, `state.json`), and as `imagefolder` (images beside `metadata.csv` or
`metadata.jsonl`): `tables.py` reads them where they lie at or below the folder of the data set.
"""

import contextlib
import itertools
import zipfile
from collections.abc import Iterable
from pathlib import Path

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.files import is_web_page

from . import tables
from .folders import ARCHIVES, list_folder, unpack_command, walk_folders
from .spec import listed
from .tables import DEPTH, MOST

METADATA = (*tables.METADATA, "metadata.parquet")
ARROW = ("state.json", "dataset_dict.json")
READERS = (
    "with DATASET.ROOT {} it is read by DATASET.NAME FolderDomains if it has a column domain, otherwise by "
    'FolderClasses, and by the data sets that docs/datasets.md names in "Copies from the Hugging Face hub"'
)


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
            said.append(f"{path} is an archive{split_inside(path)}: unpack it first ({unpack_command(path)})")
    if len(archives) > 3:
        said[-1] += f", and {len(archives) - 3} more"
    return [*said, *texts.values()]


def hint(root: Path, names: Iterable[str] = ()) -> str:
    """`packed` as the end of an error; starts with a blank, or is empty."""
    return "".join(f" {text}." for text in packed(root, names))


def split_inside(path: Path) -> str:
    """That a zip is a copy of one of CoOp's data sets with its split file, as `zhengli97/prompt_learning_dataset` has
    them; starts with a blank, or is empty."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ""
    splits = [name for name in names if name.startswith("split_zhou_") and name.endswith(".json")]
    return f" with the published split {splits[0]} and its images" if splits else ""


def hub_copies(folder: Path) -> dict[str, str]:
    """Kind -> sentence, of what a folder itself holds of the hub's formats."""
    files, found = list_folder(folder)[1], {}
    parquet = [name for name in files if name.lower().endswith(".parquet") and name != METADATA[2]]
    if parquet:
        found["parquet"] = (
            f"{folder} holds {len(parquet)} parquet file{'' if len(parquet) == 1 else 's'} ({listed(parquet, 2)}), a "
            f"copy from the Hugging Face hub: {READERS.format(folder)}"
        )
    arrow = [name for name in files if name.lower().endswith(".arrow")]
    if any(name in files for name in ARROW) or ("dataset_info.json" in files and arrow):
        marks = [name for name in files if name in ARROW] + arrow
        found["arrow"] = f"{folder} is an arrow folder of `save_to_disk` ({listed(marks, 3)}): {READERS.format(folder)}"
    path = next((folder / name for name in METADATA if name in files), None)
    if path is None:
        return found
    what = f"{path} lists images, as `imagefolder` of the Hugging Face hub has it"
    if path.name == METADATA[2]:
        return found | {"metadata": f"{what}: write it as metadata.csv with the columns file_name and label"}
    with contextlib.suppress(ValueError):
        columns = next((cells for _, cells in tables.read_metadata(path)), {})
        if "file_name" in columns and {"label", "class"} & set(columns):
            what += f": it is read by DATASET.NAME Manifest with DATASET.MANIFEST {path}"
        else:
            what += f", but with the columns {listed(columns)}: with file_name and label DATASET.NAME Manifest reads it"
    return found | {"metadata": what}
