"""Randomness of the loaders, derived from `cfg.SEED` and drawn from no global generator.

- A seeded loader starts each epoch from a seed that depends on `cfg.SEED`, its stream (train_x, train_u, val, test) and
  the number of the epoch: the order of images does not change with other random draws of the program.
- The transforms of an image start from a seed that depends on the epoch and the image's index, and the global
  generators are put back afterwards: the same pictures with any number of workers.
- A negative `cfg.SEED` leaves all of this to torch's own defaults.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed made of numbers and names, equal on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything_local(seed: int) -> None:
    """Seeds the generators of random, numpy and torch's CPU in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_worker(worker_id: int) -> None:
    """The loader's worker_init_fn: seeds a worker from the epoch's seed and its own number."""
    seed_everything_local(derive_seed(get_worker_info().seed - worker_id, worker_id))


@contextmanager
def image_randomness(epoch_seed: int | None, index: int) -> Iterator[None]:
    """Randomness of one image's transforms; outside of a worker, the generators are as before afterwards.

    Args:
        epoch_seed: Seed of the epoch; None leaves the generators alone.
        index: The image's index in its list.
    """
    if epoch_seed is None:
        yield
        return
    if get_worker_info() is not None:
        seed_everything_local(derive_seed(epoch_seed, index))
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_everything_local(derive_seed(epoch_seed, index))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


class SeededLoader(DataLoader):
    """A loader whose epochs are determined by a seed and their number.

    Args:
        seed: Seed of the loader's stream.
    """

    def __init__(self, *args, seed: int, **kwargs) -> None:
        self.seed = seed
        self.epochs_started = 0
        super().__init__(*args, worker_init_fn=seed_worker, **kwargs)

    def __deepcopy__(self, memo: dict) -> SeededLoader:
        """A copy with a generator of its own, shared with its sampler (not every torch copies generators itself)."""
        memo[id(self.generator)] = torch.Generator().set_state(self.generator.get_state())
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __iter__(self):
        epoch_seed = derive_seed(self.seed, self.epochs_started)
        self.epochs_started += 1
        self.generator.manual_seed(epoch_seed)
        if hasattr(self.dataset, "epoch_seed"):
            self.dataset.epoch_seed = epoch_seed
        return super().__iter__()
