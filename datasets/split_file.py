"""`SplitFileDataset`: the data sets whose train, val and test stand in a file that CoOp's authors published.

Zhou, Yang, Loy, Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134):
`split_zhou_<name>.json` holds {"train": [[path, label, class name], ...], "val": ..., "test": ...} with paths relative
to the image folder. A missing file is an error: results on another split are not comparable. DATASET.SPLIT_FILE names
a file to read in its place.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import no_file

from . import packed
from .base import Layout, PlainDataset
from .folders import ImageFile, list_folder, open_root
from .listed_files import FileFinder, best_base, clean_path
from .places import places
from .protocols import PARTS
from .spec import Spec, listed, load_spec, name_key, read_entry

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = ("", "splits", "data_splits", "data/data_splits", "split")
Entries = dict[str, list[tuple[str, int]]]  # part -> (path below the image folder, label)


@dataclass(frozen=True)
class Split:
    """A split as its file has it: where it was found, a word on it, and its entries."""

    text: str
    entries: Entries


class SplitFileDataset(PlainDataset):
    """Base class; a loader names its entry in `lists/`.

    Attributes:
        file: stem of the entry.
    """

    file = ""
    reads_split_file = True

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec(cls.file)

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, self.spec.name)
        entry = read_entry(self.file)
        found = list(places(root, (*self.spec.folders, *entry["image_folders"])))
        split = self.read_split(cfg, root, found, entry)
        bases = image_bases(found, entry["image_folders"])
        paths = [path for entries in split.entries.values() for path, _ in entries]
        base, sample = best_base(bases, paths)
        if base is None:
            raise MissingFileError(
                f"{self.spec.name}: none of {len(sample)} files of {split.text} was found below {listed(bases, 4)}, "
                f"first: {sample[0]}.{contents_hint(bases)} See docs/datasets.md"
            )
        finder = FileFinder(base)
        _, missing = finder.find_all(paths)
        if missing:
            raise MissingFileError(
                f"{self.spec.name}: {len(missing)} of {len(paths)} files of {split.text} are missing in {base}, first: "
                f"{missing[0]}"
            )

        def read(pool: str) -> dict[str, list[ImageFile]]:
            return {
                part: [ImageFile(finder.find(path), label, finder.key(path)) for path, label in entries]
                for part, entries in split.entries.items()
            }

        parts = {part: part for part in PARTS if split.entries.get(part)}
        return Layout(text=f"images in {base}, {split.text}", read=read, parts=parts, heldout=())

    def read_split(self, cfg, root: Path, found: Sequence[Path], entry: Mapping) -> Split:
        """The split file's entries.

        Args:
            cfg: for DATASET.SPLIT_FILE.
            root: DATASET.ROOT.
            found: folders that may be the data set's.
            entry: the entry in `lists/`.

        Raises:
            MissingFileError: if there is no split file; says where it is published.
            UserError: if it is that of another data set.
        """
        asked = cfg.DATASET.get("SPLIT_FILE", "")
        name = entry["split_file"]
        path = asked_file(asked) if asked else find_file([root, *found], name)
        if path is None:
            link = next(item for item in entry["links"] if item["what"] == name)
            raise MissingFileError(
                f"{self.spec.name}: {name} not found in {listed(dict.fromkeys([root, *found]), 4)} nor in the folders "
                f"{listed(SPLIT_FOLDERS[1:])} there.{contents_hint([root], self.spec.folders)} "
                f"It is published at {link['url']}. Results on another split are not comparable; `dassl-clip data "
                f"verify {self.spec.name} --root {root} --make-split` makes one under another name"
            )
        entries = read_split_file(path, self.spec)
        return Split(f"split file {path}{self._likeness(entries, entry)}", entries)

    def _likeness(self, entries: Entries, entry: Mapping) -> str:
        """Whether the split file is the published one, as far as its numbers and its first entry tell."""
        counts = {part: len(images) for part, images in entries.items()}
        path, label, _ = entry["first_train_entry"]
        if counts == entry["images"] and entries["train"][0] == (path, label):
            return " (as published)"
        return " (NOT the published split: its numbers or its first entry differ)"


def asked_file(asked: str) -> Path:
    """The file that DATASET.SPLIT_FILE names.

    Raises:
        MissingFileError: if there is none.
    """
    path = Path(asked).expanduser()
    if not path.is_file():
        raise MissingFileError(f"DATASET.SPLIT_FILE: {no_file(path)}")
    return path


def find_file(folders: Iterable[Path], name: str) -> Path | None:
    """The first file of a name in some folders, or in those where splits are kept inside them."""
    every = dict.fromkeys(folder / inner for folder in folders for inner in SPLIT_FOLDERS)
    return next((folder / name for folder in every if (folder / name).is_file()), None)


def image_bases(found: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Folders below which listed paths may begin: those called like the image folder first."""
    keys = {name_key(name) for name in names if name}
    inner = [place / name for place in found for name in list_folder(place)[0] if name_key(name) in keys]
    return list(dict.fromkeys([*inner, *found]))


def contents_hint(folders: Sequence[Path], names: Sequence[str] = ()) -> str:
    """What some folders hold, for an error; starts with a blank. `names`: those of the data set's archive."""
    texts = [
        f"{folder} holds {listed([*list_folder(folder)[0], *list_folder(folder)[1]], 5)}" for folder in folders[:3]
    ]
    hint = f" {'; '.join(texts)}.{packed.hint(folders[0], names)}"
    if any(name.startswith("n02") for folder in folders for name in list_folder(folder)[0]):
        hint += " Folders such as n02086646-... are those of Stanford Dogs or ImageNet, which are other data sets."
    return hint


def read_split_file(path: Path, spec: Spec) -> Entries:
    """Entries of a split file, in its order. The class name decides; labels may count from 0 or from 1.

    Raises:
        UserError: if it is no split file, if a name and its label do not fit the class list, or if a path is twice.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = {part: [(clean_path(str(p)), int(label), str(name)) for p, label, name in data[part]]
                for part in PARTS if part in data}  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is no split file with the lists train, val and test of [path, label, class name]: {error}"
        ) from error
    if not rows.get("train") or not rows.get("test"):
        raise UserError(f"{path} has no images in train or in test; it has {listed(data)}")
    names, seen = {name_key(name): label for label, name in enumerate(spec.classes)}, set()
    first = 1 if min(label for images in rows.values() for _, label, _ in images) == 1 else 0
    entries: Entries = {}
    for part, images in rows.items():
        entries[part] = []
        for file, label, name in images:
            expected = names.get(name_key(name))
            if expected is None or label - first != expected:
                known = spec.classes[label - first] if 0 <= label - first < len(spec.classes) else "no class"
                raise UserError(
                    f'{path}: label {label} of {file} is "{name}", expected "{known}" of {spec.name}: this is the '
                    "split of another data set, or one with another order of classes"
                )
            if file in seen:
                raise UserError(f"{path} names {file} twice")
            seen.add(file)
            entries[part].append((file, expected))
    return entries
