"""Random states of a process as plain data, so that a run that stopped goes on with the draws it would have made."""

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators of python, numpy and torch (all devices) in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The states of these generators: numbers, lists and byte tensors only, which load with `weights_only=True`."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    states = {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}
    states["torch"] = torch.get_rng_state()
    states["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states


def restore(states: dict[str, Any]) -> None:
    """Put the generators where `capture` found them; the states of GPUs that are not here are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
