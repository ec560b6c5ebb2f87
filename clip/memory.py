"""How work is split so that it fits the memory: how much a pass may keep, and how many items it takes at once.

The figures depend on sizes and on the machine alone, not on what happens to be free, so that work is split in the same
way in every run and a run repeats bit by bit.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from dassl_clip.results.errors import UserError

SHARE = 4  # a quarter of the device's memory
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PART_RECOMPUTED = 8  # a chunk that is computed again takes one part in 8 of the budget
PART_WITHOUT_GRADIENTS = 16  # a pass without gradients takes one part in 16 of it


@lru_cache(maxsize=16)
def activation_budget(device: torch.device) -> int:
    """Bytes of activations that one pass may keep on `device` for its backward pass."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // SHARE
    return _main_memory() // SHARE


def _main_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    for name in CGROUP_LIMITS:
        try:
            limit = int(Path(name).read_text().strip())
        except (OSError, ValueError):
            continue
        total = min(total, limit)
    return total


def chunk_size(chunk: int | str | None, count: int, auto: int) -> int:
    """The number of items taken at once that `chunk` asks for: a number, "auto" for `auto`, None for all."""
    if chunk is None:
        return count
    if chunk == "auto":
        return auto
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise UserError(f'chunk must be "auto", None or a whole number of at least 1, got {chunk!r}')
    return chunk


def rows_without_gradients(budget: int, bytes_per_row: int) -> int:
    """Rows that a pass without gradients takes at once."""
    return max(1, budget // PART_WITHOUT_GRADIENTS // bytes_per_row)


def plan_chunks(
    count: int, chunk: int | str | None, grad: bool, rows: float, layers: int, bytes_per_row: int, budget: int
) -> Iterator[tuple[int, int, bool]]:
    """The chunks in which items are computed: first item, last item + 1, whether the backward pass computes it again.

    Args:
        count: Number of items.
        chunk: A number (each chunk is computed again), "auto" (as many chunks as the budget holds are kept, the others
            computed again) or None (all at once, nothing again).
        grad: Whether there will be a backward pass.
        rows: Rows of an item, on average.
        layers: Layers that keep each row for the backward pass.
        bytes_per_row: Bytes that a layer keeps for a row.
        budget: Bytes that all may keep.
    """
    if chunk != "auto":
        size, kept = chunk_size(chunk, count, auto=count), count if chunk is None else 0
    elif not grad:
        size, kept = max(1, int(rows_without_gradients(budget, bytes_per_row) / rows)), count
    else:
        bytes_each = rows * layers * bytes_per_row
        if count * bytes_each <= budget:
            size, kept = count, count
        else:
            size = max(1, min(count, int(budget / PART_RECOMPUTED / bytes_each)))
            kept = max(0, int(budget / bytes_each / size) - 1)
    for number, start in enumerate(range(0, count, size)):
        yield start, min(start + size, count), grad and number >= kept
