"""Which images each of several processes reads: its rows of every training batch, and every so many test batches.

Both leave what is computed as it is in one process: training batches are those of one stream, and test batches stay
whole, so that each image is computed beside the same others.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from dassl_clip.results.errors import UserError

from . import signals as termination
from .distributed import broadcast, gather_rows, gather_values, peers, rank, world_size


class OwnRows(BatchSampler):
    """The rows of each global batch that belong to this process.

    The order of images is the main process's, the same stream that a process alone draws; so the batches do not depend
    on the number of processes.

    Args:
        batches: torch's batch sampler of the global batches.
    """

    def __init__(self, batches: BatchSampler):
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.images = len(batches.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        order = broadcast(torch.tensor(list(self.sampler), dtype=torch.int64))
        for batch in order.split(self.batch_size):
            if len(batch) == self.batch_size or (len(batch) and not self.drop_last):
                yield batch[peers().own(len(batch))].tolist()

    def rows(self, number: int) -> int:
        """Images in the global batch of this number (of a whole epoch, from 0)."""
        return min(self.batch_size, self.images - number * self.batch_size)


def own_rows(loader: DataLoader) -> DataLoader:
    """A training loader that reads this process's rows of each global batch; alone, the loader itself.

    Raises:
        UserError: The batch size is not a multiple of the number of processes, or there are fewer images than those.
    """
    size = world_size()
    if size == 1:
        return loader
    batches = loader.batch_sampler
    if batches.batch_size % size:
        raise UserError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE is {batches.batch_size}, the number of images of all {size} processes "
            f"together; it must be a multiple of {size}, such as {batches.batch_size // size * size + size}"
        )
    if len(batches.sampler) < size:
        raise UserError(
            f"there are {len(batches.sampler)} training images for {size} processes; start at most as many as images"
        )
    return _like(loader, OwnRows(batches))


def own_batches(loader: DataLoader) -> DataLoader:
    """A test loader of every `world_size()`-th batch, from number `rank()` on; alone, the loader itself.

    Whole batches are dealt out, so that each image is computed in the same batch as by a process alone. A loader with
    fewer batches than processes stays whole: then all of them compute all of it.
    """
    if not is_dealt(loader):
        return loader
    order = broadcast(torch.tensor(list(loader.batch_sampler.sampler), dtype=torch.int64))
    batches = [part.tolist() for part in order.split(loader.batch_sampler.batch_size)]
    return _like(loader, batches[rank() :: world_size()])


def dealt(own: Iterator[tuple[Tensor, ...]], loader: DataLoader) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of rows, of all batches of a loader in their order, from those that each process made of its own.

    Args:
        own: What this process made of each batch of `own_batches(loader)`.
        loader: The loader.

    Yields:
        What was made of as many batches as there are processes, rows in the order of the loader.

    Raises:
        ElsewhereError: Another process had an error; in that one, the error itself.
        Terminated: This process, or one of those that share the loader, was told to end.
    """
    if not is_dealt(loader):
        for made in own:
            if world_size() == 1:
                termination.leave_if_told()
            yield made
        return
    last: tuple[Tensor, ...] = ()
    for _ in range(-(-len(loader) // world_size())):
        fault = None
        try:
            made = next(own, None)
        except Exception as error:
            fault = error
        own_state = "" if fault is None else f"{fault or type(fault).__name__}", termination.requested()
        faults, told = zip(*gather_values(own_state))
        if fault is not None:
            raise fault
        if any(faults):
            raise ElsewhereError(next(text for text in faults if text))
        if any(told):
            raise termination.Terminated(f"process {told.index(True)} was told to end", agreed=True)
        last = tuple(rows[:0] for rows in last) if made is None else made
        yield tuple(gather_rows(rows) for rows in last)


class ElsewhereError(RuntimeError):
    """An error of another process; the message is its own."""

    from_user = True


def is_dealt(loader: DataLoader) -> bool:
    """Whether `own_batches` gives each process a part of the loader."""
    return 1 < world_size() <= len(loader)


def _like(loader: DataLoader, batches: Any) -> DataLoader:
    """A loader of the same kind and images, with other batches."""
    options: dict[str, Any] = {"seed": loader.seed} if hasattr(loader, "seed") else {}
    if not hasattr(loader, "seed"):
        options["worker_init_fn"] = loader.worker_init_fn
    if loader.num_workers:
        options |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return type(loader)(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
        **options,
    )
