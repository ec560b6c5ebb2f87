"""A data set as it lies on the disk: the images of its pools by part, and the split where it has none of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .fewshot import HOLDOUT_SEED, hold_out
from .folders import ImageFile

WHOLE = ""  # the one pool of a data set without domains
Parts = dict[str, list[ImageFile]]  # part -> its images


@dataclass(frozen=True)
class Layout:
    """A data set as it lies on the disk.

    Args:
        text: what was found and where, for the log and the run's record.
        read: pool -> its images by part: `train`, `val` and `test` as far as the layout has them; no image is in two
            parts.
        parts: part -> what the data set calls it.
        heldout: parts that make the test of a target domain on which nothing is trained.
    """

    text: str
    read: Callable[[str], Parts]
    parts: Mapping[str, str]
    heldout: tuple[str, ...] = ()


def every_image(parts: Mapping[str, Sequence[ImageFile]]) -> list[ImageFile]:
    """All images of a pool, by label and then by name, in whichever parts they lie."""
    return sorted((image for images in parts.values() for image in images), key=lambda image: (image.label, image.key))


def split_again(layout: Layout, seed: int, how: str = "; all parts together") -> Layout:
    """A layout whose images are split into 80 % and 20 % of each class, whatever parts it has."""

    def read(pool: str) -> Parts:
        train, val = hold_out(every_image(layout.read(pool)), seed, pool)
        return {"train": train, "val": val}

    text = f"{layout.text}{how}, a fifth of each class held out by seed {seed if seed >= 0 else HOLDOUT_SEED}"
    return Layout(text, read, {"train": "train (80 %)", "val": "hold-out (20 %)"}, heldout=("train", "val"))
