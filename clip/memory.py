"""How much memory a pass may keep for its backward pass.

The figure depends on the machine alone, not on what happens to be free, so that work is split in the same way in every
run.
"""

import os
from functools import lru_cache
from pathlib import Path

import torch

SHARE = 4  # a quarter of the device's memory
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@lru_cache(maxsize=16)
def activation_budget(device: torch.device) -> int:
    """Bytes of activations that one pass may keep on `device`."""
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
