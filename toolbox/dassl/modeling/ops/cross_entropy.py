"""Cross entropy with smoothed labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, torch="torch")


def cross_entropy(input: Tensor, target: Tensor, label_smooth: float = 0, reduction: str = "mean") -> Tensor:
    """Cross entropy.

    Args:
        input: Logits [B, C].
        target: Labels [B].
        label_smooth: Share of the label that is spread evenly over all classes.
        reduction: "none", "sum" or "mean".
    """
    return F.cross_entropy(input, target, label_smoothing=label_smooth, reduction=reduction)
