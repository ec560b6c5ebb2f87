"""Test sets for models of ImageNet: ImageNetV2, ImageNet-Sketch, ImageNet-A and ImageNet-R.

- V2: Recht, Roelofs, Schmidt, Shankar, ICML 2019 (arXiv 1902.10811). Three sets of 10,000 images, of which
  DATASET.IMAGENETV2 names one. Class folders are the numbers 0 to 999, which are the labels themselves, or wnids.
- Sketch: Wang, Ge, Lipton, Xing, NeurIPS 2019 (arXiv 1905.13549); published as 50,000 images, 50,889 on the disk.
- A: Hendrycks, Zhao, Basart, Steinhardt, Song, CVPR 2021 (arXiv 1907.07174), and R: Hendrycks et al., ICCV 2021 (arXiv
  2006.16241): 200 of the 1000 classes each, as a problem of 200 classes with labels in the order of their wnids.

They have test images alone, which are handed in as `train_x` too. NUM_SHOTS is without effect, and a part of the
classes cannot be chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, PlainDataset, register
from .folder_domains import PART_KEYS
from .folders import list_folder, read_classes
from .imagenet import INNER_FOLDERS, WNID
from .places import find_place
from .protocols import DASSL
from .spec import Spec, did_you_mean, load_spec, name_key

V2_DEFAULT = "matched-frequency"
V2_SETS = {
    "matched-frequency": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "threshold0.7": ("imagenetv2-threshold0.7-format-val", "imagenetv2-threshold0.7"),
    "top-images": ("imagenetv2-top-images-format-val", "imagenetv2-top-images", "imagenetv2-topimages-format-val"),
}


class ImageNetVariant(PlainDataset):
    """Base class: one folder with a folder for each class.

    Attributes:
        file: stem of the entry in `lists/`.
        inner: names of folders that may hold the class folders, inside the data set's own.
    """

    file = ""
    inner: tuple[str, ...] = ()
    protocols = (DASSL, "all-images")

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
        return Layout(
            text=f"class folders in {place}",
            read=lambda pool: {"test": read_classes(place, "test", self.spec)},
            parts={"test": "all images"},
            heldout=(),
        )

    def find(self, cfg) -> Path:
        """The folder of the class folders."""
        names = (*self.inner, *PART_KEYS)
        return find_place(cfg, self.spec, self.fits(), "folders called like wnids (n01440764, ...)", names)

    def fits(self) -> Callable[[Path], bool]:
        """Whether a folder holds class folders of this data set, and of no other that has more classes.

        A folder called like a part is read unless it is one of several, or in a folder called like ImageNet's: then it
        is more likely ImageNet's own.
        """
        keys, most = self.spec.class_keys(), len(self.spec.classes)
        imagenet = {name_key(name) for name in (*load_spec("imagenet").folders, *INNER_FOLDERS)}

        def check(folder: Path) -> bool:
            folders = list_folder(folder)[0]
            wnids = sum(WNID.fullmatch(name) is not None for name in folders)
            known = sum(name_key(name) in keys for name in folders)
            if not known or wnids > most or name_key(folder.name) not in PART_KEYS:
                return known > 0 and wnids <= most
            parts = sum(name_key(name) in PART_KEYS for name in list_folder(folder.parent)[0])
            return parts == 1 and name_key(folder.parent.name) not in imagenet

        return check


@register
class ImageNetSketch(ImageNetVariant):
    """Drawings in black and white of ImageNet's classes."""

    file = "imagenet_sketch"
    inner = ("sketch", "images")


@register
class ImageNetA(ImageNetVariant):
    """Photographs that a ResNet-50 gets wrong, of 200 classes."""

    file = "imagenet_a"
    inner = ("imagenet-a",)


@register
class ImageNetR(ImageNetVariant):
    """Renditions (art, cartoons, toys, ...) of 200 classes."""

    file = "imagenet_r"
    inner = ("imagenet-r",)


@register
class ImageNetV2(ImageNetVariant):
    """New test images, gathered as ImageNet's were."""

    file = "imagenet_v2"

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        """The classes, whose folders may be called by number or wnid.

        Raises:
            UserError: if DATASET.IMAGENETV2 names no set.
        """
        asked = cfg.DATASET.get("IMAGENETV2", V2_DEFAULT)
        if asked not in V2_SETS:
            hint = did_you_mean(asked, list(V2_SETS))
            raise UserError(f'DATASET.IMAGENETV2 is "{asked}"; it must be one of {", ".join(V2_SETS)}.{hint}')
        spec = super().make_spec(cfg)
        numbers = {wnid: (f"{label}", f"{label:03d}", f"{label:04d}") for label, wnid in enumerate(spec.folder_names)}
        return replace(spec, class_folders=numbers)

    def find(self, cfg) -> Path:
        """The folder of the set that is asked for."""
        asked = cfg.DATASET.get("IMAGENETV2", V2_DEFAULT)
        named = {name_key(name): key for key, names in V2_SETS.items() for name in names}
        keys, others = self.spec.class_keys(), []

        def fits(folder: Path) -> bool:
            folders = list_folder(folder)[0]
            others.extend(name for name in folders if named.get(name_key(name), asked) != asked)
            classes = sum(name_key(name) in keys for name in folders)
            return named.get(name_key(folder.name), asked) == asked and 2 * classes > len(self.spec.classes)

        looked_for = f"{V2_SETS[asked][0]}/ with the class folders 0 to 999 or wnids"
        try:
            return find_place(cfg, self.spec, fits, looked_for, V2_SETS[asked])
        except FileNotFoundError as error:
            if not others:
                raise
            there = ", ".join(dict.fromkeys(named[name_key(name)] for name in others))
            raise MissingFileError(f"{error}. Another set is there: DATASET.IMAGENETV2 {there}") from None

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        layout = super().open_layout(cfg, domains)
        return replace(layout, text=f"{cfg.DATASET.get('IMAGENETV2', V2_DEFAULT)} set, {layout.text}")
