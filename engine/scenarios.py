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
from collections.abc import Iterable, Sequence

import numpy as np


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


def slots_of_stream(labels: np.ndarray, block: int) -> int:
    """How many slots `stream_order` assigns the classes' images to: full blocks, or classes if these are fewer."""
    return min(len(labels) // block, len(np.unique(labels)))


def stream_order(labels: np.ndarray, gamma: float | None, block: int, seed: int, number: int) -> list[np.ndarray]:
    """One order of all images, cut into blocks of `block` images, the last of which may be shorter: indexes `[M]`.

    There are as many slots as full blocks, at most as many as classes that occur. Each class's images, in their order,
    are assigned to the slots in shares of a Dirichlet distribution; the slots follow one another, shuffled within.

    Args:
        labels: `[N]`.
        gamma: Parameter of the distribution, the same for all slots; None: the classes follow one another in random
            order, shuffled within.
        block: Images of a block.
        seed: The order is made by the generator of (seed, number).
        number: Number of the order.

    Raises:
        ValueError: There are fewer than 2 slots, so that the distribution would decide nothing.
    """
    generator = np.random.default_rng([seed, number])
    images = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if gamma is None:
        slots = [images[position] for position in generator.permutation(len(images))]
    else:
        count = slots_of_stream(labels, block)
        if count < 2:
            raise ValueError(f"{count} slot of {block} images: this order is a plain shuffle, whatever gamma is")
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
