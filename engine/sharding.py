"""Which images each of several processes reads in testing: every so many batches.

Batches stay whole, so that each image is computed beside the same others as in one process.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import signals
from .distributed import broadcast, gather_rows, gather_values, rank, world_size


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
        Terminated: This process, or one of those that share the loader, is to stop.
    """
    if not is_dealt(loader):
        for made in own:
            if world_size() == 1:
                signals.raise_if_stopped()
            yield made
        return
    last: tuple[Tensor, ...] = ()
    for _ in range(-(-len(loader) // world_size())):
        fault = None
        try:
            made = next(own, None)
        except Exception as error:
            fault = error
        own_state = "" if fault is None else f"{fault or type(fault).__name__}", signals.stop.requested
        faults, stops = zip(*gather_values(own_state))
        if fault is not None:
            raise fault
        if any(faults):
            raise ElsewhereError(next(text for text in faults if text))
        if any(stops):
            raise signals.Terminated(f"process {stops.index(True)} was stopped", agreed=True)
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
