"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_accuracy(output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of samples whose label is among the k largest scores.

    Args:
        output: Scores [B, C]; of a tuple or list, its first.
        target: Labels [B].
        topk: The values of k.

    Returns:
        One tensor of one element for each k, in percent.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(min(max(topk), output.shape[1]), dim=1).indices  # [B, K]
    hits = ranked.eq(target.reshape(-1, 1))  # [B, K]
    share = 100.0 / target.shape[0]
    return [hits[:, :k].sum(dtype=torch.float32).reshape(1) * share for k in topk]
