"""ImageNet (ILSVRC 2012): 1000 classes, 1,281,167 training and 50,000 validation images; the latter are the test.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015 (arXiv 1409.0575). The label is the
position of the wnid in sorted order. Class names are those of CLIP (Radford et al., ICML 2021), which has two names
twice (missile, sunglasses): a class is known by its wnid alone. The training folder may be absent, for methods that
need no labels. In Kaggle's copy, where the validation images lie flat, `LOC_val_solution.csv` gives their classes.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, PlainDataset, register
from .folders import ImageFile, is_image, list_folder, read_classes, read_text, readable_csv
from .places import find_place
from .spec import Spec, listed, load_spec, name_key

logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
VAL_FOLDERS = ("val", "validation", "valid", "ILSVRC2012_img_val")
INNER_FOLDERS = ("CLS-LOC",)
VAL_SOLUTION = "LOC_val_solution.csv"
CLASS_FILE = "classnames.txt"
WNID = re.compile(r"n\d{8}")
VALPREP = "sort them into class folders with valprep.sh (torchvision's and CoOp's instructions name it)"


@register
class ImageNet(PlainDataset):
    """Photographs of 1000 kinds of things."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("imagenet")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        looked_for = "the folders train/ and val/, with a folder for each wnid (n01440764, ...) inside"
        place = find_place(cfg, self.spec, has_parts, looked_for, INNER_FOLDERS, wnids_hint(cfg.DATASET.ROOT))
        train, val = subfolder(place, TRAIN_FOLDERS), subfolder(place, VAL_FOLDERS)
        if val is None:
            raise MissingFileError(
                f"ImageNet: {place} has no val/ (or {listed(VAL_FOLDERS[1:])}), whose images are the test; it holds "
                f"{listed(list_folder(place)[0])}"
            )
        if not cfg.DATASET.get("CLASSNAMES", ""):
            check_class_file(place, self.spec)
        labels = flat_labels(val, self.spec)
        found = {"train": train, "test": val} if train is not None and holds_something(train) else {"test": val}

        def read(pool: str) -> dict[str, list[ImageFile]]:
            images = {part: [] for part in found}
            if "train" in found:
                images["train"] = read_classes(found["train"], "train", self.spec)
            images["test"] = read_flat(val, labels, self.spec) if labels else read_classes(val, "val", self.spec)
            return images

        text = f"{'train and ' if 'train' in found else ''}val in {place}"
        if labels:
            text += f", val flat with the classes of {VAL_SOLUTION}"
        if "train" not in found:
            text += ", no train"
        return Layout(text=text, read=read, parts={part: folder.name for part, folder in found.items()}, heldout=())


def has_parts(folder: Path) -> bool:
    """Whether a folder holds folders for training or validation with wnid folders, or the flat validation images."""
    for part in (subfolder(folder, TRAIN_FOLDERS), subfolder(folder, VAL_FOLDERS)):
        if part is not None:
            folders, files = list_folder(part)
            if any(map(WNID.fullmatch, folders)) or any(name.startswith("ILSVRC2012_val_") for name in files):
                return True
    return False


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The sub-folder with the first of some names that is there, in any letter case."""
    there = {name_key(name): name for name in list_folder(folder)[0]}
    return next((folder / there[name_key(name)] for name in names if name_key(name) in there), None)


def holds_something(folder: Path) -> bool:
    """Whether a folder has anything in it."""
    return any(list_folder(folder))


def wnids_hint(root: str) -> str:
    """A sentence for a root that holds the wnid folders itself; starts with a blank, or is empty."""
    path = Path(root).expanduser().absolute()
    if path.is_dir() and any(map(WNID.fullmatch, list_folder(path)[0])):
        return f" {path} holds the wnid folders of one part: set DATASET.ROOT to the folder above, {path.parent}."
    return ""


def flat_labels(val: Path, spec: Spec) -> dict[str, int]:
    """Labels of validation images that lie flat, by file stem; empty where they lie in class folders.

    Raises:
        MissingFileError: if they lie flat and nothing says which is which.
        UserError: if the file that says it names an unknown wnid.
    """
    folders, files = list_folder(val)
    images = [name for name in files if is_image(name)]
    if any(map(WNID.fullmatch, folders)) or not images:
        return {}
    path = next((folder / VAL_SOLUTION for folder in val.parents[:5] if (folder / VAL_SOLUTION).is_file()), None)
    if path is None:
        raise MissingFileError(
            f"ImageNet: {val} holds {len(images)} images and no wnid folders, so nothing says what they show: "
            f"{VALPREP}, or put Kaggle's {VAL_SOLUTION} above it. If CoOp's loader has read this folder before, "
            "delete its preprocessed.pkl then"
        )
    keys, labels = spec.class_keys(), {}
    with readable_csv(path):
        for number, row in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), start=1):
            if len(row) != 2 or row[0] == "ImageId":
                continue
            wnid = row[1].split(" ")[0]
            if wnid not in keys:
                raise UserError(f'{path}, line {number}: "{wnid}" is no wnid of ImageNet\'s 1000 classes')
            labels[row[0]] = keys[wnid]
    return labels


def read_flat(val: Path, labels: dict[str, int], spec: Spec) -> list[ImageFile]:
    """Validation images that lie flat, in label order and sorted by name inside a class.

    Raises:
        MissingFileError: if images of a class, or the class of an image, are missing.
    """
    names = [name for name in list_folder(val)[1] if is_image(name)]
    unknown = [name for name in names if Path(name).stem not in labels]
    if unknown:
        raise MissingFileError(
            f"ImageNet: {VAL_SOLUTION} does not name {len(unknown)} images of {val}: {listed(unknown)}"
        )
    images = [
        ImageFile(os.path.join(val, name), label, f"val/{spec.key_names[label]}/{name}")
        for name in names
        for label in (labels[Path(name).stem],)
    ]
    absent = sorted(set(range(len(spec.classes))) - {image.label for image in images})
    if absent:
        raise MissingFileError(f"ImageNet: {val} has no images of {listed(spec.key_names[label] for label in absent)}")
    return sorted(images, key=lambda image: (image.label, image.key))


def check_class_file(place: Path, spec: Spec) -> None:
    """Warn if a `classnames.txt` beside the images has other names than CLIP's; it is never used."""
    for folder in (place, place.parent):
        path = folder / CLASS_FILE
        if not path.is_file():
            continue
        lines = [
            line.split() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()
        ]
        for number, (words, wnid, name) in enumerate(zip(lines, spec.folder_names, spec.classes), start=1):
            if words[0] != wnid or " ".join(words[1:]) != name:
                logger.warning(
                    '%s, line %d is "%s", expected "%s %s": this is not CLIP\'s list; the built-in names are used, '
                    "and those of a file by DATASET.CLASSNAMES FILE",
                    *(path, number, " ".join(words), wnid, name),
                )
                break
        return
