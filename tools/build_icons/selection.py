"""The data set: the curated list, its split by groups of drawings, and the near-duplicates left out of pre-training."""

import csv
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

CURATED_FILE = Path(__file__).with_name("curated.csv")
DOMAINS = ("emoji", "flat", "line", "solid")
SPLITS = ("train", "val", "test")
SHARES = {"train": 0.49, "val": 0.11, "test": 0.4}
SPLIT_SEED = 1
DUPLICATE_PIXELS = 16
DUPLICATE_CORRELATION = 0.98


class Curated(NamedTuple):
    """One picture of the data set; variants of one drawing share a group."""

    domain: str
    label: str
    pack: str
    icon: str
    group: str


def read_curated(path: Path = CURATED_FILE) -> list[Curated]:
    """The curated pictures, sorted."""
    with path.open(newline="", encoding="utf-8") as file:
        return sorted(
            Curated(row["domain"], row["class"], row["pack"], row["icon"], row["group"]) for row in csv.DictReader(file)
        )


def curated_classes(path: Path = CURATED_FILE) -> list[str]:
    """Class names in the order in which the curated file first has them."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(dict.fromkeys(row["class"] for row in csv.DictReader(file)))


def split_groups(sizes: dict[str, int], rng: random.Random) -> dict[str, str]:
    """Give each group of one class in one domain to a split.

    Groups come by size, large ones first and equals in random order. The first goes to train, the second to test, the
    last to val, so that no class lacks any of them; each other group goes to the split that is furthest below its
    share.

    Args:
        sizes: pictures in each group.
        rng: source of the order.

    Returns:
        group to split.

    Raises:
        ValueError: if there are fewer than two groups.
    """
    if len(sizes) < 2:
        raise ValueError(f"Groups {sorted(sizes)} cannot fill train and test: at least two groups are needed.")
    order = sorted(sizes)
    rng.shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    placed = {order[0]: "train", order[1]: "test"}
    if len(order) > 2:
        placed[order[-1]] = "val"
    filled = {split: sum(sizes[group] for group in placed if placed[group] == split) for split in SPLITS}
    total = sum(sizes.values())
    for group in order:
        if group not in placed:
            split = max(SPLITS, key=lambda name: SHARES[name] * total - filled[name])
            placed[group] = split
            filled[split] += sizes[group]
    return placed


def split_pictures(pictures: Sequence[Curated], seed: int = SPLIT_SEED) -> dict[Curated, str]:
    """Train, val or test for every picture; a group stays on one side."""
    cells: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for picture in pictures:
        cells[picture.domain, picture.label][picture.group] += 1
    placed = {}
    for (domain, label), sizes in sorted(cells.items()):
        placed |= split_groups(dict(sizes), random.Random(f"{seed}/{domain}/{label}"))
    return {picture: placed[picture.group] for picture in pictures}


def fingerprints(pictures: np.ndarray, pixels: int = DUPLICATE_PIXELS) -> np.ndarray:
    """Grey thumbnails, mean removed, length 1.

    Args:
        pictures: uint8 [N, P, P, 3] with P a multiple of `pixels`.
        pixels: side of the thumbnail.

    Returns:
        float32 [N, pixels * pixels]; an even picture gives zeros.
    """
    n, side = pictures.shape[:2]
    step = side // pixels
    rows = np.empty((n, pixels * pixels), dtype=np.float32)
    for start in range(0, n, 4096):
        grey = pictures[start : start + 4096].astype(np.float32).mean(axis=-1)
        small = grey.reshape(-1, pixels, step, pixels, step).mean(axis=(2, 4)).reshape(-1, pixels * pixels)
        small -= small.mean(axis=1, keepdims=True)
        length = np.linalg.norm(small, axis=1, keepdims=True)
        rows[start : start + 4096] = np.divide(small, length, out=np.zeros_like(small), where=length > 1e-3)
    return rows


def near_duplicates(
    candidates: np.ndarray, references: np.ndarray, threshold: float = DUPLICATE_CORRELATION
) -> tuple[np.ndarray, np.ndarray]:
    """Which candidates repeat a reference picture.

    Args:
        candidates: uint8 [N, P, P, 3].
        references: uint8 [R, P, P, 3].
        threshold: correlation of the thumbnails above which two pictures count as one.

    Returns:
        bool [N], and for each candidate the index of its most similar reference, int64 [N].
    """
    reference_prints = fingerprints(references)
    repeated = np.zeros(len(candidates), dtype=bool)
    nearest = np.zeros(len(candidates), dtype=np.int64)
    for start in range(0, len(candidates), 8192):
        similarity = fingerprints(candidates[start : start + 8192]) @ reference_prints.T
        repeated[start : start + 8192] = similarity.max(axis=1) > threshold
        nearest[start : start + 8192] = similarity.argmax(axis=1)
    return repeated, nearest
