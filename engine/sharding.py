"""Test batches shared by several processes: each reads whole ones, so that an image is computed beside the same others.

Training batches are shared by rows (`data.EpochBatches`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dassl_clip.results.errors import UserError

from . import signals
from .distributed import broadcast, gather_rows, gather_values, rank, world_size


def shard_batches(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A test loader of every `world_size()`-th batch, from number `rank()` on; alone, the loader itself.

    A loader with fewer batches than processes stays whole: then all of them compute all of it.
    """
    if not _is_sharded(loader):
        return loader
    order = broadcast(torch.tensor(list(loader.sampler), dtype=torch.int64))
    batches = [part.tolist() for part in order.split(batch_size(loader))]
    return DataLoader(
        loader.dataset,
        batch_sampler=batches[rank() :: world_size()],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
        worker_init_fn=loader.worker_init_fn,
    )


def merge_shards(own: Iterator[tuple[Tensor, ...]], loader: DataLoader[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all batches of a loader in their order, from those that each process computed of its own.

    Args:
        own: Tensors `[B, ...]` that this process computed of each batch of `shard_batches(loader)`.
        loader: The loader.

    Yields:
        The tensors of as many batches as there are processes, rows in the order of the loader.

    Raises:
        ElsewhereError: Another process had an error; in that one, the error itself.
        Terminated: A stop was requested of this process, or of one of those that share the loader.
    """
    if not _is_sharded(loader):
        for tensors in own:
            if world_size() == 1:
                signals.raise_if_stopped()
            yield tensors
        return
    last: tuple[Tensor, ...] = ()
    for _ in range(-(-len(loader) // world_size())):
        fault: Exception | None = None
        batch: tuple[Tensor, ...] | None = None
        try:
            batch = next(own, None)
        except Exception as error:
            fault = error
        state = "" if fault is None else f"{fault or type(fault).__name__}", signals.stop.requested
        faults, stops = zip(*gather_values(state))
        if fault is not None:
            raise fault
        if any(faults):
            raise ElsewhereError(next(text for text in faults if text))
        if any(stops):
            raise signals.Terminated(f"process {stops.index(True)} was stopped", agreed=True)
        last = tuple(rows[:0] for rows in last) if batch is None else batch
        yield tuple(gather_rows(rows) for rows in last)


class ElsewhereError(RuntimeError):
    """An error of another process; the message is its own."""

    from_user = True


def batch_size(loader: DataLoader[Any]) -> int:
    """Images in a batch of a loader.

    Raises:
        UserError: It gives single images, or has a batch sampler of its own.
    """
    if loader.batch_size is None:
        raise UserError("a loader must have a batch size: give DataLoader its batch_size, and no batch_sampler")
    return loader.batch_size


def _is_sharded(loader: DataLoader[Any]) -> bool:
    return 1 < world_size() <= len(loader)
