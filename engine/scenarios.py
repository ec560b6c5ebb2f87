"""How images come to be tested beside the whole test set: in batches of few classes, in a stream, or one at a time.

The protocols of the literature on transductive zero-shot learning, as lists of indexes into the tested images:

- `batch`: independent draws of images of a few classes (Zanella et al., CVPR 2025, arXiv 2501.03729);
- `stream`: all images in one order in which classes cluster, cut into blocks (the same);
- `online`: all images in a random order (Qian and Hu, ECCV 2024, arXiv 2408.13320).

Two deviations: every generator is seeded, by seed and number of the draw, so that all methods get the same lists; and
the last short block of a stream is tested too. Labels make the lists and count the hits. No method sees them.

Shapes: `N` images, `M` images of a draw or a block.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dassl_clip.results.errors import UserError

TASKS = ("batch", "stream", "online")
SEPARATE = "separate"  # a stream of one class after another
BATCH_FORM = "SIZE, or SIZE:LEAST-MOST for batches of so many classes, such as 64 or 64:1-4"


@dataclass(frozen=True)
class Batch:
    """A case of the task `batch`: `size` images, of `least` to `most` classes (None: of all classes)."""

    size: int
    least: int | None = None
    most: int | None = None

    @property
    def name(self) -> str:
        """`B64`, `B64 K1-4`."""
        return f"B{self.size}" + (f" K{self.least}-{self.most}" if self.least else "")


def parse_batch(text: str) -> Batch:
    """An entry of SCENARIOS.BATCHES.

    Raises:
        UserError: It is no such text, or its numbers are too small or the wrong way round.
    """
    size, colon, classes = text.partition(":")
    least, dash, most = classes.partition("-")
    numbers = [size, least, most] if colon else [size]
    if not all(number.isdecimal() and number.isascii() for number in numbers) or bool(colon) != bool(dash):
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}; expected {BATCH_FORM}")
    batch = Batch(*map(int, numbers))
    if batch.size < 2:
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}: a batch has at least 2 images")
    if batch.least is not None and batch.most is not None and not 1 <= batch.least <= batch.most:
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}: the classes are from 1 or more up to no fewer, as in 1-4")
    return batch


def parse_stream(text: str) -> float | None:
    """An entry of SCENARIOS.STREAMS: the parameter of its Dirichlet distribution, or None for `separate`.

    Raises:
        UserError: It is neither.
    """
    if text == SEPARATE:
        return None
    try:
        gamma = float(text)
    except ValueError:
        gamma = math.nan
    if not 0 < gamma < math.inf:
        raise UserError(
            f"SCENARIOS.STREAMS holds {text!r}; expected a positive number, the parameter of a Dirichlet distribution "
            f"(small: classes cluster), or {SEPARATE} for one class after another"
        )
    return gamma


def check_scenarios(cfg: Any) -> None:
    """Refuse settings of SCENARIOS that no list can be made by.

    Raises:
        UserError: The setting, what was given and what is expected.
    """
    node = cfg.SCENARIOS
    for key, parse in (("BATCHES", parse_batch), ("STREAMS", parse_stream)):
        entries = list(map(str, node[key]))
        if not entries:
            raise UserError(f"SCENARIOS.{key} is empty; name at least one, such as {'64' if key == 'BATCHES' else 0.1}")
        for entry in entries:
            parse(entry)
            if entries.count(entry) > 1:
                raise UserError(f"SCENARIOS.{key} names {entry!r} {entries.count(entry)} times; name each once")
    if node.TASK and cfg.TEST.SPLIT != "test":
        raise UserError(f"TEST.SPLIT is {cfg.TEST.SPLIT}, but {node.TASK} draws from the test images: take test")


def check_draws(cfg: Any, images: int) -> None:
    """Refuse a run whose lists have no seed, or none of whose batches the tested images can fill.

    Raises:
        UserError: SEED is negative, or every size of SCENARIOS.BATCHES is above the number of images.
    """
    task = cfg.get("SCENARIOS", {}).get("TASK")
    if task and cfg.SEED < 0:
        raise UserError(
            f"SEED is {cfg.SEED}, but {task} draws the same images for all methods: give a seed of 0 or more"
        )
    if task == "batch" and all(parse_batch(str(entry)).size > images for entry in cfg.SCENARIOS.BATCHES):
        raise UserError(
            f"SCENARIOS.BATCHES is {', '.join(map(str, cfg.SCENARIOS.BATCHES))}, but {images} images are tested here, "
            "fewer than any of these batches has; give a smaller size"
        )


def batch_draws(
    labels: np.ndarray, size: int, classes: tuple[int, int] | None, draws: int, seed: int
) -> list[np.ndarray]:
    """Independent draws of images, each an index `[M]` into the images, without repetition within a draw.

    Of each draw, the number of classes is uniform in `classes`; so many of the classes that occur are drawn, and from
    all their images, taken together, `size` images (all of them, where there are fewer).

    Args:
        labels: `[N]`.
        size: Images of a batch.
        classes: Least and largest number of classes; None: all that occur, as where there are too few.
        draws: Number of draws.
        seed: Draw number d is made by the generator of (seed, d).
    """
    present = np.unique(labels)
    lists = []
    for number in range(draws):
        generator = np.random.default_rng([seed, number])
        count = len(present) if classes is None else int(generator.integers(classes[0], classes[1] + 1))
        chosen = present if count >= len(present) else generator.choice(present, count, replace=False)
        pool = np.flatnonzero(np.isin(labels, chosen))
        lists.append(generator.choice(pool, min(size, len(pool)), replace=False))
    return lists


def stream_order(labels: np.ndarray, gamma: float | None, block: int, seed: int, number: int) -> list[np.ndarray]:
    """One order of all images, cut into blocks of `block` images, the last of which may be shorter: indexes `[M]`.

    There are as many slots as full blocks, at most as many as classes that occur. Each class's images, in their order,
    are dealt to the slots in shares of a Dirichlet distribution; the slots follow one another, shuffled within.

    Args:
        labels: `[N]`.
        gamma: Parameter of the distribution, the same for all slots; None: the classes follow one another in random
            order, shuffled within.
        block: Images of a block.
        seed: The order is made by the generator of (seed, number).
        number: Number of the order.
    """
    generator = np.random.default_rng([seed, number])
    images = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if gamma is None:
        slots = [images[position] for position in generator.permutation(len(images))]
    else:
        count = max(1, min(len(labels) // block, len(images)))
        parts = []
        for own in images:
            shares = generator.dirichlet(np.full(count, gamma))
            cuts = np.floor(np.cumsum(shares) * len(own)).astype(int)[:-1]  # the last slot gets what is left
            parts.append(np.split(own, cuts))
        slots = [np.concatenate(slot) for slot in zip(*parts)]
    order = np.concatenate([generator.permutation(slot) for slot in slots])
    return np.split(order, range(block, len(order), block))


def online_order(count: int, seed: int, number: int) -> np.ndarray:
    """A random order `[N]` of `count` images, by the generator of (seed, number)."""
    return np.random.default_rng([seed, number]).permutation(count)


def lists_hash(labels: np.ndarray, lists: Iterable[Sequence[np.ndarray]]) -> str:
    """SHA-256 (hex) over the labels `[N]` of all images, and the indexes of each block of each draw, in their order."""
    digest = hashlib.sha256()
    for values in (labels, *(block for blocks in lists for block in (np.array(len(blocks)), *blocks))):
        digest.update(np.array(values.size, dtype="<i8").tobytes())
        digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()
