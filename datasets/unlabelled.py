"""A user's own images without labels: no class folders, or no column of classes, but a file of class names.

They are tested, and handed in as `train_x` too, under the label -1. A run writes predictions and measures nothing; a
method that trains on labels refuses them.
"""

from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results.errors import UserError
from dassl_clip.results.image_formats import is_image
from dassl_clip.results.labels import UNLABELLED

from .class_names import lines_of
from .folders import ImageFile, list_folder
from .parts import Layout, Parts
from .spec import Spec


def spec_of_names(dataset: str, path: Path) -> Spec:
    """The classes that a file names, one a line.

    Raises:
        UserError: There are fewer than two, or one stands twice.
    """
    names = [line.strip() for line in lines_of(path)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or len(names) < 2:
        fault = f'names the class "{twice}" twice' if twice is not None else "names one class"
        raise UserError(f"{path} {fault}; for images without labels it holds two or more class names, one a line")
    return Spec(name=dataset, classes=tuple(names), domains={}, names_file=path)


def flat_images(folder: Path) -> list[ImageFile]:
    """The images of a folder itself, sorted by name."""
    names = sorted(name for name in list_folder(folder)[1] if is_image(name))
    return [ImageFile(str(folder / name), UNLABELLED, name) for name in names]


def layout_of(images: Sequence[ImageFile], where: str) -> Layout:
    """A layout whose every image is tested."""

    def read(pool: str) -> Parts:
        return {"test": list(images)}

    return Layout(f"{len(images)} images without labels {where}", read, {"test": "all"})
