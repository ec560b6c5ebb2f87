"""Mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Mixes images and labels pair by pair.

    Args:
        x1: Images [B, C, H, W].
        x2: Images [B, C, H, W].
        y1: One-hot labels [B, K].
        y2: One-hot labels [B, K].
        beta: Parameter of the Beta distribution of the weights.
        preserve_order: The weight of the first is at least 0.5.

    Returns:
        Mixed images and mixed labels.
    """
    weight = torch.distributions.Beta(beta, beta).sample((len(x1), 1, 1, 1)).to(x1)
    if preserve_order:
        weight = torch.max(weight, 1 - weight)
    flat = weight.reshape(-1, 1).to(y1)
    return x1 * weight + x2 * (1 - weight), y1 * flat + y2 * (1 - flat)
