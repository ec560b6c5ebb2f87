"""Deterministic kernels, on request."""

from __future__ import annotations

import os

import torch

from .switches import is_on


def apply_deterministic_switch() -> None:
    """With `DASSL_DETERMINISTIC=1`: deterministic kernels (a warning where none exists), and no cudnn benchmark."""
    if is_on("DASSL_DETERMINISTIC"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
