"""The base of all backbones."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """A module from images to features; a subclass sets `_out_features`."""

    @property
    def out_features(self) -> int | None:
        """Width of the features; None if the subclass did not say."""
        return getattr(self, "_out_features", None)
