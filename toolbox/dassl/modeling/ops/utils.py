"""Labels, probabilities, ramps and running means of models."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, np="numpy")


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Probabilities [B, C] to a power, normalised again in each row."""
    powered = p.pow(temperature)
    return powered / powered.sum(1, keepdim=True)


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Data and labels in reverse order."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Data and labels in one random order."""
    order = torch.randperm(len(data), device=data.device)
    return data[order], label[order]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Labels [B] as rows of float zeros with a one: [B, num_classes]."""
    return torch.zeros(len(label), num_classes, device=label.device).scatter(1, label.unsqueeze(1).long(), 1)


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """exp(-5 (1 - x)^2) with x = current / rampup_length in [0, 1]; 1 for a length of 0 (Laine and Aila, ICLR 2017)."""
    if rampup_length == 0:
        return 1.0
    rest = 1.0 - min(max(current / rampup_length, 0.0), 1.0)
    return math.exp(-5.0 * rest * rest)


def linear_rampup(current: float, rampup_length: float) -> float:
    """current / rampup_length in [0, 1]; 1 for a length of 0."""
    if rampup_length == 0:
        return 1.0
    return min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Moves each parameter of `ema_model` towards that of `model`: alpha of the old, 1 - alpha of the new."""
    for average, parameter in zip(ema_model.parameters(), model.parameters()):
        average.mul_(alpha).add_(parameter, alpha=1 - alpha)
