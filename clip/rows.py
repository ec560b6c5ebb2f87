"""Matrices whose rows are computed, or read from a disk, when they are asked for.

Shapes: `N` images, `E` joint embedding, `C` classes.
"""

from typing import Protocol

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError

from .losses import at_least_float32


class Rows(Protocol):
    """`[N, C]` numbers that may be formed when they are read: a tensor, or a class such as `Cosines`."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


class FeatureRows(Rows, Protocol):
    """`[N, E]` numbers that need not be in memory as a whole: a tensor (also one that is memory-mapped, of any float
    type), or a class that reads the rows it is asked for from a disk. Slices may have a step.
    """

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """Where the rows that are read arrive."""


class Cosines:
    """The scores `features @ text_proxy`, formed for the rows that are asked for.

    Args:
        features: `[N, E]`, a tensor or other `FeatureRows`.
        text_proxy: `[E, C]`.

    Raises:
        UserError: The shapes do not fit.
    """

    def __init__(self, features: FeatureRows, text_proxy: Tensor):
        if len(features.shape) != 2 or text_proxy.dim() != 2 or features.shape[1] != text_proxy.shape[0]:
            raise UserError(
                "scores are formed from features [N, E] and a text proxy [E, C], "
                f"got {tuple(features.shape)} and {tuple(text_proxy.shape)}"
            )
        self.features, self.text_proxy = features, text_proxy
        self.shape = torch.Size((features.shape[0], text_proxy.shape[1]))
        self.device = features.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        features = at_least_float32(self.features[rows])
        return features @ self.text_proxy.to(features)
