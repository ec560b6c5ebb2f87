"""Manifest: a csv file with a line for each image, with or without domains and parts.

The file is DATASET.MANIFEST, or `manifest.csv`, `metadata.csv` or `metadata.jsonl` in DATASET.ROOT. Its first line
names the columns: `path` (absolute, or from DATASET.ROOT, or else from the csv's folder on) and `class`; and, if
wanted, `label` (numbers from 0), `domain` and `split` (train, val or test). Without `label` the classes are sorted;
without `split` a seeded fifth of each class is held out, as in folders; a held-out target is tested on its test lines
if there are any, otherwise on all. `metadata.csv` and `metadata.jsonl` (a JSON object a line) of the Hugging Face hub
have `file_name` for `path`, `label` for `class`, and may have further columns. Spellings of a class that give one
prompt are one class. Without `class` the images have no labels, and DATASET.CLASSNAMES names a file of the classes.
"""

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean
from dassl_clip.results.files import no_file
from dassl_clip.results.labels import UNLABELLED, prompt_key

from . import packed
from .base import WHOLE, Layout, ListedDataset, Parts, register, split_again
from .class_names import OPTION, class_file, class_key, with_file, without_counters
from .folders import ImageFile, read_text, readable_csv
from .layouts import FileFinder, below, clean_path
from .options import split_seed
from .spec import PARTS, Spec, in_order, listed
from .tables import METADATA, read_metadata
from .unlabelled import layout_of, spec_of_names

logger = logging.getLogger(__name__)

NAME = "Manifest"
FILES = ("manifest.csv", *METADATA)
COLUMNS = ("path", "class", "label", "domain", "split")
HUB_PATH = "file_name"  # the column of paths in metadata.csv of the Hugging Face hub
SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars"}


class Row(NamedTuple):
    """One line of the file, numbered as an editor does."""

    number: int
    path: str
    name: str
    label: str
    domain: str
    split: str


@register
class Manifest(ListedDataset):
    """A user's own list of images."""

    publishes_test = False

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        path = manifest_file(cfg)
        rows = read_rows(path, cfg.DATASET.ROOT)
        if not rows[0].name:
            names = class_file(cfg, tops_of(path, cfg.DATASET.ROOT))
            if names is None:
                raise UserError(
                    f"{path} has no column class, so its images have no labels: give the class names, one a line, by "
                    f"{OPTION} FILE"
                )
            return spec_of_names(NAME, names)
        domains = sorted({row.domain for row in rows} - {""})
        keys: dict[str, str] = {}
        for domain in domains:
            other = keys.setdefault(name_key(domain), domain)
            if other != domain:
                raise UserError(f'{path}: the domains "{other}" and "{domain}" are spellings of one name; choose one')
        classes = class_list(rows, path)
        spec = Spec(
            name=NAME, classes=tuple(classes), domains=dict.fromkeys(domains, ()), said=without_counters(classes)
        )
        file = class_file(cfg, tops_of(path, cfg.DATASET.ROOT))
        return replace(spec, names_file=file) if rows[0].label else with_file(spec, file)

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        path = manifest_file(cfg)
        rows = [row for row in read_rows(path, cfg.DATASET.ROOT) if (row.domain or WHOLE) in domains]
        labels = {name: label for label, name in enumerate(self.spec.classes)} | {"": UNLABELLED}
        images = locate(rows, path, cfg.DATASET.ROOT, labels)
        if rows and not rows[0].name:
            self.unlabelled = True
            return layout_of(images, f"of {path}")
        parts = [part for part in PARTS if any(row.split == part for row in rows)]
        split = parts not in ([], ["train"])

        def read(pool: str) -> Parts:
            lists: Parts = {part: [] for part in (parts if split else ["train"])}
            for row, image in zip(rows, images):
                if (row.domain or WHOLE) == pool:
                    lists[row.split or "train"].append(image)
            return lists

        if not split:
            return split_again(Layout(f"images of {path}", read, {"train": "all"}), split_seed(cfg))
        heldout = ("test",) if "test" in parts else tuple(parts)
        return Layout(f"images of {path}", read, {part: part for part in parts}, heldout)


def manifest_file(cfg) -> Path:
    """The csv file, which must be there."""
    asked, root = cfg.DATASET.get("MANIFEST", ""), Path(cfg.DATASET.ROOT or ".").expanduser().absolute()
    there = next((root / name for name in FILES if (root / name).is_file()), root / FILES[0])
    path = Path(asked).expanduser() if asked else root if root.is_file() else there
    if not path.is_absolute():
        path = root / path if (root / path).is_file() else path.absolute()
    if not path.is_file():
        hint = f".{packed.hint(root)}" if root.is_dir() and not asked else ""
        raise MissingFileError(
            f"Manifest: {no_file(path)}; set DATASET.MANIFEST or put {FILES[0]} into DATASET.ROOT{hint}"
        )
    return path


def read_rows(path: Path, root: str = "") -> list[Row]:
    """The lines of the file, paths below DATASET.ROOT or the file's folder written from there on.

    Classes with one prompt have one name, the first in sorted order; a warning names the others.

    Raises:
        UserError: if a column is missing or unknown, or lines cannot be used; names file and line.
    """
    if path.suffix == ".jsonl":
        lines = [
            (number, {key: "" if value is None else str(value) for key, value in cells.items()})
            for number, cells in read_metadata(path)
        ]
        header = list(dict.fromkeys(key for _, cells in lines for key in cells))
    else:
        with readable_csv(path):
            reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
            header = list(reader.fieldnames or ())
            lines = [(reader.line_num, cells) for cells in reader]
    given = [name for name in header if name]
    names = {name: name.strip().casefold() for name in given}
    from_hub = HUB_PATH in names.values() and "path" not in names.values()
    names = {name: "path" if from_hub and key == HUB_PATH else key for name, key in names.items()}
    if "class" not in names.values():  # a label without a class is its name
        names = {name: "class" if key == "label" else key for name, key in names.items()}
    labelled = "class" in names.values()
    missing = [name for name in ("path", "class") if name not in names.values()] if "path" not in names.values() else []
    unknown = [name for name, key in names.items() if key not in COLUMNS]
    used = [name for mark, name in SEPARATORS.items() if missing and any(mark in name for name in names)]
    if used:
        raise UserError(f"{path} separates its columns by {used[0]}; expected are commas")
    if from_hub and unknown and not missing:
        logger.info("%s: the columns %s are not read", path, listed(unknown))
    elif missing or unknown:
        hint = did_you_mean(unknown[0], COLUMNS, cutoff=0.5) if unknown else ""
        what = f"has no column {', '.join(missing)}" if missing else f"has the unknown column {', '.join(unknown)}"
        raise UserError(f"{path} {what}; its first line must name columns of {', '.join(COLUMNS)}.{hint}")
    keys = [key for key in names.values() if key in COLUMNS]
    if len(set(keys)) < len(keys) or len(names) < len(given):
        raise UserError(f"{path} names a column twice: {', '.join(header)}")
    tops, rows, seen = tops_of(path, root), [], {}
    for number, cells in lines:
        where = f"{path}, line {number}"
        if None in cells:
            raise UserError(f"{where}: more cells than columns; quote cells that hold commas")
        cell = dict.fromkeys(COLUMNS, "") | {key: (cells.get(name) or "").strip() for name, key in names.items()}
        if not any(cell.values()):
            continue
        split = cell["split"].casefold()
        split = {"training": "train", "valid": "val", "validation": "val"}.get(split, split)
        if not cell["path"] or (labelled and not cell["class"]):
            raise UserError(f"{where}: path and class must not be empty")
        if split not in ("", *PARTS):
            raise UserError(f'{where}: split is "{split}"; it must be train, val, test or empty')
        if cell["label"] and not cell["label"].isdecimal():
            raise UserError(f'{where}: label is "{cell["label"]}"; it must be a whole number from 0 on, or empty')
        if "/" in cell["domain"]:
            raise UserError(f'{where}: the domain "{cell["domain"]}" must not hold a slash')
        file = below(clean_path(cell["path"]), tops)
        rows.append(Row(number, file, cell["class"], cell["label"], cell["domain"], split))
    if not rows:
        raise UserError(f"{path} names no image")
    for column in ("domain", "split", "label"):
        empty = [row.number for row in rows if not getattr(row, column)]
        if empty and len(empty) < len(rows):
            raise UserError(
                f"{path}: {column} is empty in the lines {listed(empty)} and filled in others; fill all or none"
            )
    for row in rows:
        other = seen.setdefault(row.path, row.number)
        if other != row.number:
            raise UserError(f"{path}: lines {other} and {row.number} name the same image {row.path}")
    kept: dict[str, str] = {}
    spellings = {name: kept.setdefault(class_key(name), name) for name in sorted({row.name for row in rows})}
    for name, first in spellings.items():
        if prompt_key(name) != prompt_key(first):
            raise UserError(f'{path}: the classes "{first}" and "{name}" are spellings of one name; choose one')
    if twins := [f'"{name}" is "{first}"' for name, first in spellings.items() if name != first]:
        logger.warning("%s: classes with one prompt are one class: %s", path, listed(twins))
    return [row._replace(name=spellings[row.name]) for row in rows]


def tops_of(path: Path, root: str) -> list[Path]:
    """The folders at which the paths of a manifest may begin: DATASET.ROOT and its own."""
    folders = [Path(root).expanduser().absolute() if root else path.parent, path.parent]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def class_list(rows: Sequence[Row], path: Path) -> list[str]:
    """Class names in label order; a label for each class, and a class for each label from 0 on."""
    if not rows[0].label:
        return in_order({row.name for row in rows})
    labels: dict[str, int] = {}
    for row in rows:
        if labels.setdefault(row.name, int(row.label)) != int(row.label):
            raise UserError(
                f'{path}, line {row.number}: class "{row.name}" has label {row.label}, but {labels[row.name]} before'
            )
    if sorted(labels.values()) != list(range(len(labels))):
        raise UserError(
            f"{path}: the labels of {len(labels)} classes must be 0 to {len(labels) - 1}, each once; they are "
            f"{listed(sorted(labels.values()))}"
        )
    return sorted(labels, key=labels.__getitem__)


def locate(rows: Sequence[Row], path: Path, root: str, labels: Mapping[str, int]) -> list[ImageFile]:
    """The images of some lines, all of which must be there."""
    folders = tops_of(path, root)
    finders, images, missing = [FileFinder(folder) for folder in folders], [], []
    for row in rows:
        if row.path.startswith("/"):
            place = row.path if os.path.isfile(row.path) else None
        else:
            place = next((found for finder in finders if (found := finder.find(row.path)) is not None), None)
        if place is None:
            missing.append(row)
            continue
        key = f"{row.domain}/{row.path.lstrip('/')}" if row.domain else row.path
        images.append(ImageFile(place, labels[row.name], key))
    if missing:
        raise MissingFileError(
            f"{path}: {len(missing)} of {len(rows)} images are missing, first: {missing[0].path} (line "
            f"{missing[0].number}), looked for in {listed(folders)}"
        )
    return images
