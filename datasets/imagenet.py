"""ImageNet, and test sets for models of it: ImageNetV2, ImageNet-Sketch, ImageNet-A, ImageNet-R and ImageNet-C.

Class names are those of CLIP (Radford et al., ICML 2021), which has two names twice (missile, sunglasses): a class is
known by its wnid alone. The variants have test images alone, which are handed in as `train_x` too. There NUM_SHOTS is
without effect, and a part of the classes cannot be chosen.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.data_sets import name_key, read_entry
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.image_formats import is_image

from . import packed
from .base import Layout, ListedDataset, Parts, register
from .folders import PART_KEYS, ImageFile, list_folder, open_root, read_classes, read_text, readable_csv
from .hub import TableParts
from .layouts import find_place, match_domains, named_folders
from .options import ALL_IMAGES, DASSL, choice
from .spec import Spec, listed, load_spec

logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
VAL_FOLDERS = ("val", "validation", "valid", "ILSVRC2012_img_val")
INNER_FOLDERS = ("CLS-LOC",)
VAL_SOLUTION = "LOC_val_solution.csv"
CLASS_FILE = "classnames.txt"
WNID = re.compile(r"n\d{8}")
VALPREP = "sort them into class folders with valprep.sh (torchvision's and CoOp's instructions name it)"
V2_DEFAULT = "matched-frequency"
V2_SETS = {
    "matched-frequency": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "threshold0.7": ("imagenetv2-threshold0.7-format-val", "imagenetv2-threshold0.7"),
    "top-images": ("imagenetv2-top-images-format-val", "imagenetv2-top-images", "imagenetv2-topimages-format-val"),
}


@register
class ImageNet(ListedDataset):
    """ILSVRC 2012: 1000 classes, 1,281,167 training and 50,000 validation images; the latter are the test.

    Russakovsky et al., IJCV 2015 (arXiv 1409.0575). The label is the position of the wnid in sorted order. The training
    folder may be absent, for methods that need no labels. In Kaggle's copy, where the validation images lie flat,
    `LOC_val_solution.csv` gives their classes.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("imagenet")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        looked_for = "the folders train/ and val/, with a folder for each wnid (n01440764, ...) inside"
        root, hint = Path(cfg.DATASET.ROOT).expanduser().absolute(), ""
        if root.is_dir() and any(map(WNID.fullmatch, list_folder(root)[0])):
            hint = f" {root} holds the wnid folders of one part: set DATASET.ROOT to the folder above, {root.parent}."
        place = find_place(cfg, self.spec, has_parts, looked_for, INNER_FOLDERS, hint)
        train, val = subfolder(place, TRAIN_FOLDERS), subfolder(place, VAL_FOLDERS)
        if val is None:
            raise MissingFileError(
                f"ImageNet: {place} has no val/ (or {listed(VAL_FOLDERS[1:])}), whose images are the test; it holds "
                f"{listed(list_folder(place)[0])}.{packed.hint(place, (*VAL_FOLDERS, 'ILSVRC2012_img_val'))}"
            )
        if not cfg.DATASET.get("CLASSNAMES", ""):
            check_class_file(place, self.spec)
        labels = flat_labels(val, self.spec)
        train = train if train is not None and any(list_folder(train)) else None

        def read(pool: str) -> Parts:
            images = {} if train is None else {"train": read_classes(train, "train", self.spec)}
            test = read_flat(val, labels, self.spec) if labels else read_classes(val, "val", self.spec)
            return images | {"test": test}

        flat = f", val flat with the classes of {VAL_SOLUTION}" if labels else ""
        if train is None:
            return Layout(f"val in {place}{flat}, no train", read, {"test": val.name})
        return Layout(f"train and val in {place}{flat}", read, {"train": train.name, "test": val.name})

    def table_parts(self, cfg) -> TableParts:
        parts = {"train": "train", "val": "test"}
        return TableParts(parts, needed=("test",), prefix={"train": "train", "test": "val"})


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


def flat_labels(val: Path, spec: Spec) -> dict[str, int]:
    """Labels of validation images that lie flat, by file stem; empty where they lie in class folders.

    Refused are images of which nothing says which is which, and wnids that are unknown.
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
    """Validation images that lie flat, in label order and sorted by name inside a class; none may lack."""
    names = [name for name in list_folder(val)[1] if is_image(name)]
    unknown = [name for name in names if Path(name).stem not in labels]
    if unknown:
        raise MissingFileError(
            f"ImageNet: {VAL_SOLUTION} does not name {len(unknown)} images of {val}: {listed(unknown)}"
        )
    images = [
        ImageFile(os.path.join(val, name), label, f"val/{spec.key_names[label]}/{name}")
        for name, label in ((name, labels[Path(name).stem]) for name in names)
    ]
    absent = sorted(set(range(len(spec.classes))) - {image.label for image in images})
    if absent:
        raise MissingFileError(f"ImageNet: {val} has no images of {listed(spec.key_names[label] for label in absent)}")
    return sorted(images, key=lambda image: (image.label, image.key))


def check_class_file(place: Path, spec: Spec) -> None:
    """Warn if a `classnames.txt` beside the images has other names than CLIP's; it is never used."""
    path = next((home / CLASS_FILE for home in (place, place.parent) if (home / CLASS_FILE).is_file()), None)
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if path else []
    lines = [line.split() for line in lines if line.strip()]
    for number, (words, wnid, name) in enumerate(zip(lines, spec.folder_names, spec.classes), start=1):
        if words[0] != wnid or " ".join(words[1:]) != name:
            logger.warning(
                '%s, line %d is "%s", expected "%s %s": this is not CLIP\'s list; the built-in names are used, '
                "and those of a file by DATASET.CLASSNAMES FILE",
                *(path, number, " ".join(words), wnid, name),
            )
            return


class ImageNetVariant(ListedDataset):
    """Base class of the test sets: one folder with a folder for each class.

    `file` is the stem of the entry in `lists/`, `inner` the names of folders that may hold the class folders, inside
    the data set's own.
    """

    file = ""
    inner: tuple[str, ...] = ()
    protocols = (DASSL, ALL_IMAGES)

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        spec = load_spec(cls.file)
        subset = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        if subset != "all":
            raise UserError(
                f'DATASET.SUBSAMPLE_CLASSES is "{subset}", but {spec.name} is tested with all its '
                f"{len(spec.classes)} classes: set it to all"
            )
        return spec

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        place = self.find(cfg)
        read = lambda pool: {"test": read_classes(place, "test", self.spec)}  # noqa: E731
        return Layout(f"class folders in {place}", read, {"test": "all images"})

    def find(self, cfg) -> Path:
        """The folder of the class folders: one that holds those of this data set, and of no other that has more.

        A folder called like a part is read unless it is one of several, or in a folder called like ImageNet's: then it
        is more likely ImageNet's own.
        """
        keys, most = self.spec.class_keys(), len(self.spec.classes)
        imagenet = {name_key(name) for name in (*load_spec("imagenet").folders, *INNER_FOLDERS)}

        def fits(folder: Path) -> bool:
            folders = list_folder(folder)[0]
            wnids = sum(WNID.fullmatch(name) is not None for name in folders)
            known = any(name_key(name) in keys for name in folders)
            if not known or wnids > most or name_key(folder.name) not in PART_KEYS:
                return known and wnids <= most
            parts = sum(name_key(name) in PART_KEYS for name in list_folder(folder.parent)[0])
            return parts == 1 and name_key(folder.parent.name) not in imagenet

        names = (*self.inner, *PART_KEYS)
        return find_place(cfg, self.spec, fits, "folders called like wnids (n01440764, ...)", names)


@register
class ImageNetSketch(ImageNetVariant):
    """Black-and-white drawings of the 1000 classes: Wang, Ge, Lipton, Xing, NeurIPS 2019, arXiv 1905.13549.

    Published as 50,000 images, 50,889 on the disk.
    """

    file = "imagenet_sketch"
    inner = ("sketch", "images")


@register
class ImageNetA(ImageNetVariant):
    """Photographs that a ResNet-50 gets wrong: Hendrycks et al., CVPR 2021, arXiv 1907.07174.

    200 of the 1000 classes, as a problem of 200 classes with labels in the order of their wnids.
    """

    file = "imagenet_a"
    inner = ("imagenet-a",)


@register
class ImageNetR(ImageNetVariant):
    """Renditions (art, cartoons, toys, ...) of 200 classes as above: Hendrycks et al., ICCV 2021, arXiv 2006.16241."""

    file = "imagenet_r"
    inner = ("imagenet-r",)


@register
class ImageNetC(ImageNetVariant):
    """ImageNet's validation images with 15 corruptions, which are the domains: Hendrycks, Dietterich, ICLR 2019.

    DATASET.IMAGENETC_SEVERITY, 1 to 5, names the folder of each corruption that is read.
    """

    file = "imagenet_c"

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        severity = cfg.DATASET.get("IMAGENETC_SEVERITY", 5)
        if severity not in range(1, 6):
            raise UserError(f"DATASET.IMAGENETC_SEVERITY is {severity}; it must be a number from 1 to 5")
        root, groups = open_root(cfg.DATASET.ROOT, self.spec.name), read_entry(self.file)["groups"]
        found: dict[str, Path] = {}
        for place in named_folders(root, (*self.spec.folders, *groups)):  # in folders of four kinds, or in one
            for name, folders in match_domains(place, self.spec).items():
                found.setdefault(name, folders[0])
        if missing := [name for name in domains if name not in found]:
            raise MissingFileError(
                f"{self.spec.name}: no folder of {listed(missing)} in {root}, nor in the folders "
                f"{listed([*self.spec.folders, *groups])} there; it has {listed(found)}.{packed.hint(root, missing)} "
                "Nothing is downloaded; see docs/datasets.md"
            )
        places = {name: found[name] / str(severity) for name in domains}
        for name, place in places.items():
            if not place.is_dir():
                raise MissingFileError(
                    f"{self.spec.name}: {found[name]} has no folder {severity} of DATASET.IMAGENETC_SEVERITY; it holds "
                    f"{listed(list_folder(found[name])[0])}"
                )
        read = lambda name: {"test": read_classes(places[name], f"{name}/{severity}", self.spec)}  # noqa: E731
        where = listed(dict.fromkeys(place.parent.parent for place in places.values()))
        return Layout(
            f"severity {severity}, corruption/severity/class folders in {where}", read, {"test": "all images"}
        )


@register
class ImageNetV2(ImageNetVariant):
    """New test images, gathered as ImageNet's were: Recht, Roelofs, Schmidt, Shankar, ICML 2019, arXiv 1902.10811.

    Three sets of 10,000 images, of which DATASET.IMAGENETV2 names one. Class folders are the numbers 0 to 999, which
    are the labels themselves, or wnids.
    """

    file = "imagenet_v2"

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        """The classes, whose folders may be called by number or wnid."""
        choice("IMAGENETV2", cfg.DATASET.get("IMAGENETV2", V2_DEFAULT), list(V2_SETS))
        spec = super().make_spec(cfg)
        numbers = {wnid: (f"{label}", f"{label:03d}", f"{label:04d}") for label, wnid in enumerate(spec.folder_names)}
        return replace(spec, class_folders=numbers)

    def find(self, cfg) -> Path:
        """The folder of the set that DATASET.IMAGENETV2 names."""
        name = cfg.DATASET.get("IMAGENETV2", V2_DEFAULT)
        named = {name_key(folder): key for key, folders in V2_SETS.items() for folder in folders}
        keys, others = self.spec.class_keys(), []

        def fits(folder: Path) -> bool:
            folders = list_folder(folder)[0]
            others.extend(inner for inner in folders if named.get(name_key(inner), name) != name)
            classes = sum(name_key(inner) in keys for inner in folders)
            return named.get(name_key(folder.name), name) == name and 2 * classes > len(self.spec.classes)

        looked_for = f"{V2_SETS[name][0]}/ with the class folders 0 to 999 or wnids"
        try:
            return find_place(cfg, self.spec, fits, looked_for, V2_SETS[name])
        except FileNotFoundError as error:
            if not others:
                raise
            there = ", ".join(dict.fromkeys(named[name_key(inner)] for inner in others))
            raise MissingFileError(f"{error}. Another set is there: DATASET.IMAGENETV2 {there}") from None

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        layout = super().open_layout(cfg, domains)
        return replace(layout, text=f"{cfg.DATASET.get('IMAGENETV2', V2_DEFAULT)} set, {layout.text}")
