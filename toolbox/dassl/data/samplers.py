"""Orders in which a loader draws its images.

The domain and class samplers announce a fixed number of batches and yield exactly that many in every epoch. Natural
epochs vary in length with the draw: the number is the median length of simulated ones, shorter ones are drawn again and
longer ones are cut.
"""

from __future__ import annotations

import random
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.utils.errors import CheckError
from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, copy="copy", np="numpy")

SIMULATED_EPOCHS = 15


class _GroupSampler(Sampler):
    """Batches made of equal shares of several groups (domains or classes), without replacement within an epoch.

    Args:
        groups: Indices of each group.
        share: Images that a group gives to a batch.
        per_batch: Groups in a batch.
        needs_all: An epoch ends when some group cannot fill its share; otherwise when too few are left for a batch.
        generator: The torch generator that an epoch's seed is drawn from; None is the global one.
    """

    def __init__(
        self,
        groups: dict[int, list[int]],
        share: int,
        per_batch: int,
        needs_all: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.groups = groups
        self.share = share
        self.per_batch = per_batch
        self.needs_all = needs_all
        self.generator = generator
        draw = random.Random(0)
        self.num_batches = statistics.median_low(len(self._draw_natural_epoch(draw)) for _ in range(SIMULATED_EPOCHS))

    def __len__(self) -> int:
        return self.num_batches * self.share * self.per_batch

    def __iter__(self) -> Iterator[int]:
        seed = torch.empty((), dtype=torch.int64).random_(generator=self.generator).item()
        rng = random.Random(seed)
        shares = {key: self._cut_into_shares(indices, rng) for key, indices in self.groups.items()}
        batches: list[list[int]] = []
        while len(batches) < self.num_batches:
            batches = self._draw_natural_epoch(rng)
        for chosen in batches[: self.num_batches]:
            for key in chosen:
                yield from shares[key].pop()

    def _cut_into_shares(self, indices: Sequence[int], rng: random.Random) -> list[list[int]]:
        """A shuffled group, cut into full shares; a group below one share is filled by drawing with replacement."""
        if len(indices) < self.share:
            return [rng.choices(indices, k=self.share)]
        shuffled = rng.sample(indices, len(indices))
        return [shuffled[start : start + self.share] for start in range(0, len(indices) - self.share + 1, self.share)]

    def _draw_natural_epoch(self, rng: random.Random) -> list[list[int]]:
        """Groups drawn for batch after batch until the epoch ends by itself."""
        left = {key: max(len(indices) // self.share, 1) for key, indices in self.groups.items()}
        open_keys, batches = list(left), []
        while len(open_keys) >= (len(left) if self.needs_all else self.per_batch):
            chosen = self._choose(open_keys, rng)
            batches.append(chosen)
            for key in chosen:
                left[key] -= 1
            open_keys = [key for key in open_keys if left[key]]
        return batches

    def _choose(self, open_keys: list[int], rng: random.Random) -> list[int]:
        return rng.sample(open_keys, self.per_batch)


class RandomDomainSampler(_GroupSampler):
    """Batches of `n_domain` random domains with equal shares; an epoch ends when some domain cannot fill its share.

    Args:
        data_source: List of Datum.
        batch_size: Images in a batch.
        n_domain: Domains in a batch; None, 0 or less: all.
        generator: The torch generator that an epoch's seed is drawn from; None is the global one.

    Raises:
        AssertionError: `batch_size` cannot be shared equally, or a domain is smaller than its share.
    """

    def __init__(
        self, data_source: Sequence, batch_size: int, n_domain: int | None, generator: torch.Generator | None = None
    ) -> None:
        groups = _group(data_source, "domain")
        per_batch = len(groups) if n_domain is None or n_domain <= 0 else n_domain
        if per_batch > len(groups):
            raise CheckError(f"A batch cannot have {per_batch} domains: the data has {len(groups)}")
        if per_batch == 0 or batch_size % per_batch:
            raise CheckError(f"batch_size={batch_size} cannot be shared equally by {per_batch} domains")
        share = batch_size // per_batch
        if small := {key: len(indices) for key, indices in groups.items() if len(indices) < share}:
            raise CheckError(
                f"Each domain gives {share} images to a batch, but these domains have fewer images: {small}"
            )
        self.data_source = data_source
        self.domains = list(groups)
        self.batch_size = batch_size
        self.n_domain = per_batch
        self.n_img_per_domain = share
        super().__init__(groups, share, per_batch, True, generator)


class SeqDomainSampler(RandomDomainSampler):
    """Batches of all domains with equal shares, the domains in sorted order inside each batch.

    The arguments and errors are those of `RandomDomainSampler`, without `n_domain`.
    """

    def __init__(self, data_source: Sequence, batch_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__(data_source, batch_size, None, generator)

    def _choose(self, open_keys: list[int], rng: random.Random) -> list[int]:
        return sorted(open_keys)


class RandomClassSampler(_GroupSampler):
    """Batches of `batch_size // n_ins` random classes with `n_ins` images each.

    A class with fewer images is filled by drawing with replacement; an epoch ends when too few classes remain.

    Args:
        data_source: List of Datum.
        batch_size: Images in a batch.
        n_ins: Images of a class in a batch.
        generator: The torch generator that an epoch's seed is drawn from; None is the global one.

    Raises:
        ValueError: `n_ins` exceeds `batch_size`.
        AssertionError: There are fewer classes than a batch needs.
    """

    def __init__(
        self, data_source: Sequence, batch_size: int, n_ins: int, generator: torch.Generator | None = None
    ) -> None:
        if batch_size < n_ins:
            raise ValueError(f"batch_size={batch_size} must be no less than n_ins={n_ins}")
        groups = _group(data_source, "label")
        per_batch = batch_size // n_ins
        if len(groups) < per_batch:
            raise CheckError(
                f"RandomClassSampler needs {per_batch} classes in a batch (batch_size {batch_size}, n_ins {n_ins}), "
                f"but the data has {len(groups)}"
            )
        if per_batch * n_ins != batch_size:
            warnings.warn(
                f"n_ins={n_ins} does not divide batch_size={batch_size}: the loader's batches do not match the "
                f"sampler's groups of {per_batch * n_ins}",
                stacklevel=2,
            )
        self.data_source = data_source
        self.labels = list(groups)
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = per_batch
        super().__init__(groups, n_ins, per_batch, False, generator)


def _group(data_source: Sequence, attribute: str) -> dict[int, list[int]]:
    """Indices of the items of each domain or label, in sorted order of the key."""
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return {key: groups[key] for key in sorted(groups)}


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    generator: torch.Generator | None = None,
) -> Sampler:
    """Makes a sampler by name.

    Args:
        sampler_type: RandomSampler, SequentialSampler, RandomDomainSampler, SeqDomainSampler or RandomClassSampler.
        cfg: Part of the interface, not read.
        data_source: List of Datum.
        batch_size: Images in a batch.
        n_domain: Domains in a batch (RandomDomainSampler).
        n_ins: Images of a class in a batch (RandomClassSampler).
        generator: The source of randomness; None is torch's global generator.

    Raises:
        ValueError: The name is unknown.
    """
    makers = {
        "RandomSampler": lambda: RandomSampler(data_source, generator=generator),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain, generator),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size, generator),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins, generator),
    }
    if sampler_type not in makers:
        raise ValueError(f"Unknown sampler type: {sampler_type}; available: {list(makers)}")
    return makers[sampler_type]()
