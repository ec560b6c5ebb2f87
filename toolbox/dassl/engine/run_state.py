"""What a run needs to resume: random states, positions of the loaders, the loss scaler.

Everything is held as tensors and numbers under one extra key of a checkpoint, which other readers ignore.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from dassl.data.seeding import SeededLoader

KEY = "run_state"
LOADERS = ("train_loader_x", "train_loader_u", "val_loader", "test_loader")


def capture_run_state(trainer: Any) -> dict[str, Any]:
    """The state of the global generators, of the trainer's seeded loaders and of its `scaler`."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    scaler = getattr(trainer, "scaler", None)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "loaders": {name: loader.epochs_started for name, loader in _seeded_loaders(trainer)},
        "scaler": scaler.state_dict() if hasattr(scaler, "state_dict") else None,
    }


def restore_run_state(trainer: Any, state: dict[str, Any] | None, epoch: int) -> None:
    """Puts a captured state back.

    Args:
        trainer: The trainer.
        state: From `capture_run_state`; None (a checkpoint of another writer) only moves the training loader on.
        epoch: Number of finished epochs.
    """
    if state is None:
        for name, loader in _seeded_loaders(trainer):
            if name.startswith("train"):
                loader.epochs_started = epoch
        return
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    python, numbers = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    keys = numbers["keys"].numpy().astype(np.uint32)
    np.random.set_state((numbers["kind"], keys, numbers["position"], numbers["has_gauss"], numbers["cached"]))
    for name, loader in _seeded_loaders(trainer):
        loader.epochs_started = state["loaders"].get(name, epoch)
    if state["scaler"] is not None and hasattr(getattr(trainer, "scaler", None), "load_state_dict"):
        trainer.scaler.load_state_dict(state["scaler"])


def _seeded_loaders(trainer: Any) -> list[tuple[str, SeededLoader]]:
    loaders = ((name, getattr(trainer, name, None)) for name in LOADERS)
    return [(name, loader) for name, loader in loaders if isinstance(loader, SeededLoader)]
