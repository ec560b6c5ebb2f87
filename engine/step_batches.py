"""Batches by steps: a training of so many steps, in parts that end where it is evaluated.

Each part is what the epoch loop calls an epoch: its batches follow from the part's seed, and it can be resumed inside.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from dassl_clip.results.errors import UserError

from . import distributed
from .data import EpochBatches, SeededImages


def part_lengths(steps: int, every: int, first: bool = False) -> list[int]:
    """Steps of each part of a training, which is evaluated after every part.

    Args:
        steps: `T`.
        every: `f`: steps between evaluations.
        first: Whether it is also evaluated after the first step, and then after `f + 1`, `2 f + 1`, ...: DomainBed's
            way, which counts steps from 0 and evaluates where the number is a multiple of `f`, and at the last.
    """
    ends = [*range(1 if first else every, steps, every), steps]
    return [end - start for start, end in zip([0, *ends], ends)]


class Repeated(Sequence[Any]):
    """A list in which number `i + k N` stands for item `i` of `N` drawn for the `k`-th time: each time another view."""

    def __init__(self, items: Sequence[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        return self.items[number % len(self.items)]


class StepBatches(EpochBatches):
    """The batches of a part: `b` images of each source domain, drawn with replacement, or of all images shuffled.

    Domains come in the order of their numbers. Shuffled images are shuffled anew in each part, and again when all were
    given out, partial batches left out. Of every batch each process reads its rows.

    Args:
        domains: The domain of each image, `[N]`.
        lengths: Batches of each part.
        per_domain: `b`; 0 for all images shuffled.
        batch_size: Of shuffled images.

    Attributes:
        part: Number of the part that `start` draws.

    Raises:
        UserError: A batch cannot be shared by the processes.
    """

    def __init__(self, domains: Sequence[int], lengths: Sequence[int], per_domain: int, batch_size: int):
        self.images, self.lengths, self.per_domain = len(domains), list(lengths), per_domain
        numbers = torch.tensor(list(domains), dtype=torch.int64)
        self.members = [(numbers == domain).nonzero()[:, 0] for domain in numbers.unique().tolist()]
        size = per_domain * len(self.members) if per_domain else min(batch_size, len(domains))
        if size % distributed.world_size():
            raise UserError(
                f"a batch has {size} images ({per_domain} of each of {len(self.members)} domains), which "
                f"{distributed.world_size()} processes cannot share evenly; choose another number"
            )
        super().__init__(range(self.images), None, size, True)
        self.part = 0

    def start(self, seed: int, first: int = 0) -> None:
        """Draw the batches of the part, of which those from number `first` on are given out."""
        draw, count = torch.Generator().manual_seed(seed), len(self)
        if self.per_domain:
            columns = [members[torch.randint(len(members), (count, self.per_domain), generator=draw)]
                       for members in self.members]  # fmt: skip
            order = torch.cat(columns, dim=1)
        else:
            each = self.images // self.batch_size
            passes = [torch.randperm(self.images, generator=draw)[: each * self.batch_size]
                      for _ in range(-(-count // each))]  # fmt: skip
            order = torch.cat(passes)[: count * self.batch_size].view(count, self.batch_size)
        times = self._times(order.flatten()).view_as(order)
        self.batches, self.first = distributed.broadcast(order + self.images * times).tolist(), first

    def _times(self, order: torch.Tensor) -> torch.Tensor:
        """How often each image of a sequence `[M]` came before."""
        by_image = order.argsort(stable=True)
        same = order[by_image]
        place = torch.arange(len(order))
        begins = torch.ones_like(same, dtype=torch.bool)
        begins[1:] = same[1:] != same[:-1]
        ranks = place - torch.where(begins, place, 0).cummax(0).values
        return torch.empty_like(ranks).index_copy_(0, by_image, ranks)

    def __len__(self) -> int:
        return self.lengths[min(self.part, len(self.lengths) - 1)]


def step_loader(like: DataLoader[Any], batches: StepBatches) -> DataLoader[Any]:
    """A loader of the same images, each drawn any number of times, in the batches of a training by steps."""
    images = like.dataset
    assert isinstance(images, SeededImages)
    images.data_source = Repeated(images.data_source)
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=like.num_workers,
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        persistent_workers=like.persistent_workers,
        generator=torch.Generator(),
    )
