"""Running means of what a run reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch


class AverageMeter:
    """The last value, the sum and the mean of a series.

    Args:
        ema: The mean is exponential, 0.9 of the old and 0.1 of the new value, starting at 0.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Adds a value (a number or a one-element tensor) that stands for `n` items."""
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        if self.ema:
            self.avg = self.avg * 0.9 + self.val * 0.1
        elif self.count:
            self.avg = self.sum / self.count


class MetricMeter:
    """One `AverageMeter` a name, in the order in which the names were first seen.

    Its string is `name val (avg)` for each name, with 4 decimals.
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Adds one value to each name; None adds nothing.

        Raises:
            TypeError: The argument is no dictionary.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"MetricMeter.update expects a dictionary of values, but got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
