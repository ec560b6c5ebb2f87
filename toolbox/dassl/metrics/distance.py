"""Distances between the rows of two matrices."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dassl.utils.errors import CheckError
from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, torch="torch")


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances between rows.

    Args:
        input1: [M, D].
        input2: [N, D].
        metric: "euclidean" (squared) or "cosine" (1 - similarity).

    Returns:
        [M, N].

    Raises:
        ValueError: Another metric.
        AssertionError: The inputs are not two matrices of the same width.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        raise CheckError(
            f"Expected matrices [M, D] and [N, D], but got {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    metrics = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    if metric not in metrics:
        raise ValueError(f'Unknown distance metric: {metric}. Please choose either "euclidean" or "cosine"')
    return metrics[metric](input1, input2)


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances between the rows of [M, D] and [N, D]: [M, N]."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1)
    return squares - 2 * input1 @ input2.t()


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """1 - cosine similarity between the rows of [M, D] and [N, D]: [M, N]."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
