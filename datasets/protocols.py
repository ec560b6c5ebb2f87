"""Layouts, their parts, and the protocols of DATASET.PROTOCOL that use them; `common` says how."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dassl_clip.results.errors import UserError

from .folders import ImageFile
from .selection import HOLDOUT_SEED, hold_out
from .spec import did_you_mean

PARTS = ("train", "val", "test")
DASSL, ALL_IMAGES, HOLDOUT = PROTOCOLS = ("dassl", "all-images", "holdout")


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
    read: Callable[[str], dict[str, list[ImageFile]]]
    parts: Mapping[str, str]
    heldout: tuple[str, ...]


def check_protocol(name: str, dataset: str, known: Sequence[str]) -> str:
    """The name of a protocol, if the data set has it.

    Raises:
        UserError: for another word, or for a protocol that does not go with the data set.
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UserError(f'DATASET.PROTOCOL is "{name}"; it must be one of {", ".join(PROTOCOLS)}.{hint}')
    if name not in known:
        raise UserError(
            f"DATASET.PROTOCOL {name} does not go with {dataset}, whose parts are fixed; it has {', '.join(known)}"
        )
    return name


def every_image(parts: Mapping[str, Sequence[ImageFile]]) -> list[ImageFile]:
    """All images of a pool, by label and then by name, in whichever parts they lie."""
    return sorted((image for images in parts.values() for image in images), key=lambda image: (image.label, image.key))


def drawn_anew(layout: Layout, seed: int) -> Layout:
    """A layout whose images are split into 80 % and 20 % of each class, whatever parts it has.

    Args:
        layout: what was found.
        seed: of the hold-out.
    """

    def read(pool: str) -> dict[str, list[ImageFile]]:
        train, val = hold_out(every_image(layout.read(pool)), seed, pool)
        return {"train": train, "val": val}

    used = seed if seed >= 0 else HOLDOUT_SEED
    return Layout(
        text=f"{layout.text}; all parts together, a fifth of each class held out by seed {used}",
        read=read,
        parts={"train": "train (80 %)", "val": "hold-out (20 %)"},
        heldout=("train", "val"),
    )
