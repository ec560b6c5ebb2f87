"""Images and labels as a Python program has them: paths, folders, patterns, pictures, arrays, tensors or features.

Pictures in memory are written as PNG into a folder that lasts as long as they are used, so that every method reads them
as it reads files. Shapes: `N` images, `E` joint embedding.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dassl_clip.engine.given_images import GivenImages, Item, labelled
from dassl_clip.engine.images import as_rgb
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.own_images import checked_names, find_images, given_names

ACCEPTED = (
    "a path, folder or pattern, a PIL image, an array [H, W, 3] or [N, H, W, 3], a tensor [3, H, W] or [N, 3, H, W], "
    "features [N, E], or a list of paths or images"
)


class Inputs:
    """The images of one call.

    Args:
        images: What was given.
        scratch: A folder for images in memory.
        prefix: Of the names of images that have none; two lists of one call need different ones.

    Attributes:
        paths: `[N]`; names, where features are given.
        features: `[N, E]`, float32, or None.

    Raises:
        UserError: What was given is not among `ACCEPTED`; a MissingFileError for a path that does not exist.
    """

    def __init__(self, images: Any, scratch: Path, prefix: str = "image") -> None:
        self.scratch, self.prefix = scratch, prefix
        self.features: Tensor | None = None
        self.in_memory = False
        self.paths: list[str] = []
        if is_features(images):
            self.features = torch.as_tensor(images).detach().float().cpu()
            self.paths = [f"{prefix} {number}" for number in range(len(self.features))]
        else:
            for one in one_by_one(images):
                self.paths += self._paths_of(one)
        if not self.paths:
            raise UserError(f"there are no images in {type(images).__name__} of length 0; expected {ACCEPTED}")

    def _paths_of(self, image: Any) -> list[str]:
        if isinstance(image, (str, os.PathLike)):
            return [str(path) for path in find_images([image])]
        self.in_memory = True
        path = self.scratch / f"{self.prefix}-{len(self.paths):09}.png"
        as_picture(image).save(path, compress_level=1)
        return [str(path)]

    def given(self, names: Sequence[str], labels: Any = None, val: "tuple[Inputs, Any] | None" = None) -> GivenImages:
        """The images, with labels where there are some, and validation images with theirs, for the engine."""
        known = None if labels is None else label_numbers(labels, names, len(self.paths))
        items, features = labelled(self.paths, known, names), self.features
        held: list[Item] = []
        in_memory, paths = self.in_memory, list(self.paths)
        if val is not None:
            other, other_labels = val
            held = labelled(other.paths, label_numbers(other_labels, names, len(other.paths)), names)
            in_memory, paths = in_memory or other.in_memory, paths + other.paths
            if (features is None) != (other.features is None):
                raise UserError("images and validation images must both be images or both be features")
            if features is not None and other.features is not None:
                if features.shape[1] != other.features.shape[1]:
                    raise UserError(
                        f"the features have {features.shape[1]} numbers each, those of validation images "
                        f"{other.features.shape[1]}"
                    )
                features = torch.cat([features, other.features])
        rows = {path: number for number, path in enumerate(paths)} if features is not None else {}
        return GivenImages(names, items, held, features, rows, on_disk=not in_memory)

    @property
    def items(self) -> list[Item]:
        """The images without labels."""
        return [Item(path) for path in self.paths]


def is_features(images: Any) -> bool:
    """Whether something is a matrix of floating-point numbers; a picture of one channel has whole numbers."""
    if isinstance(images, Tensor):
        return images.ndim == 2 and images.is_floating_point()
    return isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f"


def one_by_one(images: Any) -> Iterable[Any]:
    """The images that something stands for."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Iterable):
        return images.tolist() if isinstance(images, np.ndarray) else images
    raise UserError(f"images are given as {type(images).__name__}; expected {ACCEPTED}")


def as_picture(image: Any) -> Image.Image:
    """One image in memory as RGB of 8 bits.

    Raises:
        UserError: It is no image, or its numbers are neither bytes nor between 0 and 1.
    """
    if isinstance(image, Image.Image):
        try:
            return as_rgb(image.copy())
        except OSError as error:
            raise UserError(f"a PIL image cannot be used: {error}") from error
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        values = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
        expected = "a tensor is [3, H, W]"
    elif isinstance(image, np.ndarray):
        values, expected = image, "an array is [H, W, 3] or [H, W]"
    else:
        raise UserError(f"an image is given as {type(image).__name__}; expected {ACCEPTED}")
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)) or not values.size:
        raise UserError(f"an image has the shape {list(image.shape)}; {expected}, and features are a matrix [N, E]")
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"an image of floating-point numbers reaches from {low:g} to {high:g}; expected 0 to 1, not normalised"
            )
        values = np.round(values * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise UserError(f"an image has numbers of {values.dtype}; expected uint8, or floats from 0 to 1")
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def class_names(names: Any, labels: Any = None) -> list[str]:
    """The class names: a list, texts with commas between them, a file with one per line; or those of the labels.

    Raises:
        UserError: There are fewer than two, or one stands twice.
    """
    if names is None:
        found = set() if labels is None else set(as_list(labels))
        if not found or not all(isinstance(label, str) for label in found):
            raise UserError("names is None: give the class names, or labels that are names")
        return checked_names(sorted(found), "labels")
    if isinstance(names, (str, os.PathLike)):
        return given_names(os.fspath(names), "names")
    names = as_list(names)
    odd = next((name for name in names if not isinstance(name, str) or not name.strip()), None)
    if odd is not None:
        raise UserError(f"names holds {odd!r}; expected class names as texts that are not empty")
    return checked_names(names, "names")


def as_list(values: Any) -> list[Any]:
    """A list, array, tensor or series as a list of plain values."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def label_numbers(labels: Any, names: Sequence[str], images: int) -> list[int]:
    """Labels, names or numbers from 0, as numbers `[N]`.

    Raises:
        UserError: There are not as many as images, or one is of no class.
    """
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise UserError(f"labels are given as {type(labels).__name__}; expected a list of names or numbers")
    given = as_list(labels)
    if len(given) != images:
        raise UserError(f"there are {images} images and {len(given)} labels: give one for each image")
    place = {name: number for number, name in enumerate(names)}
    numbers = []
    for label in given:
        if isinstance(label, str):
            if label not in place:
                raise UserError(
                    f"the label {label!r} is no class.{did_you_mean(label, names)} Classes: {', '.join(names[:12])}"
                )
            numbers.append(place[label])
        elif isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
            raise UserError(f"the label {label!r} is no class; expected a name, or a number from 0 to {len(names) - 1}")
        else:
            numbers.append(label)
    return numbers
