"""Transforms that torchvision lacks."""

from __future__ import annotations

import random
from enum import Enum

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Random2DTranslation:
    """With probability `p`, enlarges the image to 1.125 of the size and crops at a random place; otherwise resizes.

    Args:
        height: Height of the result.
        width: Width of the result.
        p: Probability of the crop.
        interpolation: torchvision's InterpolationMode; None is bilinear.
    """

    def __init__(self, height: int, width: int, p: float = 0.5, interpolation: Enum | None = None) -> None:
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        name = "bilinear" if self.interpolation is None else self.interpolation.value
        interpolation = Image.Resampling[name.upper()]
        if random.uniform(0, 1) > self.p:
            return img.resize((self.width, self.height), interpolation)
        width, height = round(self.width * 1.125), round(self.height * 1.125)
        enlarged = img.resize((width, height), interpolation)
        left = random.randint(0, width - self.width)
        top = random.randint(0, height - self.height)
        return enlarged.crop((left, top, left + self.width, top + self.height))


class InstanceNormalization:
    """Each channel minus its mean, divided by its sample standard deviation + eps.

    Args:
        eps: Added to the deviation.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: Tensor) -> Tensor:
        """[C, H, W] -> [C, H, W]."""
        flat = img.reshape(img.shape[0], -1)
        mean, std = flat.mean(1), flat.std(1)
        return (img - mean[:, None, None]) / (std[:, None, None] + self.eps)


class Cutout:
    """Sets squares to 0; their centres are uniform, and they are clipped at the border.

    Args:
        n_holes: Number of squares.
        length: Side in pixels.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: Tensor) -> Tensor:
        """[C, H, W] -> [C, H, W]."""
        height, width = img.shape[-2:]
        mask = torch.ones(height, width, dtype=img.dtype)
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            top, bottom = max(0, y - self.length // 2), min(height, y + self.length // 2)
            left, right = max(0, x - self.length // 2), min(width, x + self.length // 2)
            mask[top:bottom, left:right] = 0
        return img * mask


class GaussianNoise:
    """With probability `p`, adds noise.

    Args:
        mean: Mean of the noise.
        std: Its standard deviation.
        p: Probability.
    """

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img: Tensor) -> Tensor:
        """[C, H, W] -> [C, H, W]."""
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.shape) * self.std + self.mean
