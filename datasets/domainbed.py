"""DomainBed's split: of each domain a fifth, the "out" part, is held out, and the rest is the "in" part.

Source: Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021 (arXiv 2007.01434), and the
program that its authors released. A domain is split by its place among all domains and by the trial, whatever domains a
run uses, so the images of a part are those of DomainBed's own runs on the same folders. The parts are named train (in)
and val (out) here: sources train on "in" and validate on "out", and DATASET.TEST_PART says what is tested of a target.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dassl_clip.results.domainbed import seed_hash
from dassl_clip.results.errors import UserError
from dassl_clip.results.image_rows import split_address

from .folders import ImageFile
from .options import DOMAINBED, HOLDOUT, choice
from .parts import Layout, Parts
from .spec import Spec, listed

logger = logging.getLogger(__name__)

TEST_PARTS = {"in": ("train",), "out": ("val",), "all": ("train", "val")}  # value of DATASET.TEST_PART -> parts
HELD_OUT = 0.2


def split_indices(length: int, held: int, seed: int) -> tuple[list[int], list[int]]:
    """The first `held` of the shuffled indices 0 to `length` - 1, and the rest; both in the shuffled order."""
    indices = list(range(length))
    np.random.RandomState(seed).shuffle(indices)
    return indices[:held], indices[held:]


def environments(spec: Spec) -> list[str]:
    """All domains in the order in which DomainBed counts them, that of its folders' names as texts."""
    return sorted(spec.domains, key=lambda domain: spec.details.get(domain, {}).get("domainbed_folder", domain))


def in_folder_order(images: Iterable[ImageFile], spec: Spec) -> list[ImageFile]:
    """Images of a domain as torchvision's `ImageFolder` lists them: class folders by name, files of each by name.

    A published data set has the published names of its class folders, however they are spelled on the disk.
    """

    def place(image: ImageFile) -> tuple[str, str, str]:
        published = spec.details or split_address(image.path) is not None
        folder = spec.folder_names[image.label] if published else Path(image.path).parent.name
        return folder, image.key.rpartition("/")[2], image.key

    return sorted(images, key=place)


def split_of_trial(layout: Layout, spec: Spec, trial: int, test_part: str) -> Layout:
    """A layout with the parts of DomainBed's split, whatever parts it has.

    Args:
        layout: it lists the images of `spec.skip` too, which count in the split and are left out after it.
        spec: classes and all domains.
        trial: DATASET.TRIAL, DomainBed's `trial_seed`.
        test_part: DATASET.TEST_PART.
    """
    order = environments(spec)

    def read(pool: str) -> Parts:
        images = in_folder_order((image for files in layout.read(pool).values() for image in files), spec)
        row = next((image for image in images if split_address(image.path)), None)
        if row is not None and Path(row.key).name == Path(row.path).name:
            raise UserError(
                f"DATASET.PROTOCOL {DOMAINBED} splits the images in the order of their names, but the rows of "
                f"{Path(row.path).parent} have no names of files: use a copy in folders, or DATASET.PROTOCOL holdout"
            )
        absent = [key for key in spec.skip if key.startswith(f"{pool}/") and key not in {image.key for image in images}]
        if absent:
            logger.warning(
                "%s: %s is not there; DomainBed counts it, so its split of %s has other images",
                *(spec.name, listed(absent), pool),
            )
        out, rest = split_indices(len(images), int(len(images) * HELD_OUT), seed_hash(trial, order.index(pool)))
        parts = {"train": rest, "val": out}
        return {
            part: [images[index] for index in indices if images[index].key not in spec.skip]
            for part, indices in parts.items()
        }

    text = f"{layout.text}, split by DomainBed's rule for trial {trial}"
    names = {"train": "in part (80 %)", "val": "out part (20 %)"}
    return replace(layout, text=text, read=read, parts=names, heldout=TEST_PARTS[test_part])


def test_part_of(cfg, protocol: str) -> str:
    """DATASET.TEST_PART under the protocol `domainbed`, "" under any other.

    Raises:
        UserError: it is no part, or it or DATASET.TRIAL was changed under another protocol.
    """
    part = choice("TEST_PART", cfg.DATASET.get("TEST_PART", "in"), list(TEST_PARTS))
    trial = cfg.DATASET.get("TRIAL", 0)
    if protocol == DOMAINBED:
        if trial < 0:
            raise UserError(f"DATASET.TRIAL is {trial}; it must be 0 or more (DomainBed's are 0, 1 and 2)")
        return part
    if part != "in" or trial:
        raise UserError(
            f"DATASET.TEST_PART {part} and TRIAL {trial} are of DomainBed's split, but DATASET.PROTOCOL is {protocol}: "
            f"use DATASET.PROTOCOL {DOMAINBED}, or leave TEST_PART at in and TRIAL at 0"
        )
    return ""


def check_pools(test_part: str, dataset: str, sources: Sequence[str], targets: Sequence[str]) -> None:
    """Refuse a data set without domains, and to test under this protocol what is trained on."""
    if test_part and not sources:
        raise UserError(
            f"DATASET.PROTOCOL {DOMAINBED} splits each domain, but {dataset} has none: use DATASET.PROTOCOL {HOLDOUT}"
        )
    both = [name for name in sources if name in targets]
    if both and test_part in ("in", "all"):
        raise UserError(
            f"DATASET.TEST_PART {test_part} would test images of {', '.join(both)} that are trained on: leave the "
            "domain out of DATASET.SOURCE_DOMAINS, or use DATASET.TEST_PART out"
        )
