"""RandAugment (Cubuk et al., CVPR Workshops 2020) and two variants, on PIL images.

Each operation takes an image and a value of its range. The lists give operations and their values at strength 0 and 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, np="numpy", torch="torch", PIL="PIL")

Operation = Callable[[Image.Image, float], Image.Image]


def _sign(value: float) -> float:
    """The value or its opposite, each with probability 0.5."""
    return -value if random.random() < 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def shear_x(image: Image.Image, value: float) -> Image.Image:
    """Shears along the width by a factor, in a random direction."""
    return _affine(image, 1, _sign(value), 0, 0, 1, 0)


def shear_y(image: Image.Image, value: float) -> Image.Image:
    """Shears along the height by a factor, in a random direction."""
    return _affine(image, 1, 0, 0, _sign(value), 1, 0)


def translate_x(image: Image.Image, value: float) -> Image.Image:
    """Moves along the width by a share of it, in a random direction."""
    return _affine(image, 1, 0, _sign(value) * image.size[0], 0, 1, 0)


def translate_y(image: Image.Image, value: float) -> Image.Image:
    """Moves along the height by a share of it, in a random direction."""
    return _affine(image, 1, 0, 0, 0, 1, _sign(value) * image.size[1])


def translate_x_abs(image: Image.Image, value: float) -> Image.Image:
    """Moves along the width by pixels, in a random direction."""
    return _affine(image, 1, 0, _sign(value), 0, 1, 0)


def translate_y_abs(image: Image.Image, value: float) -> Image.Image:
    """Moves along the height by pixels, in a random direction."""
    return _affine(image, 1, 0, 0, 0, 1, _sign(value))


def rotate(image: Image.Image, value: float) -> Image.Image:
    """Rotates by degrees, in a random direction."""
    return image.rotate(_sign(value))


def auto_contrast(image: Image.Image, _: float) -> Image.Image:
    """Stretches the contrast to the full range."""
    return ImageOps.autocontrast(image)


def invert(image: Image.Image, _: float) -> Image.Image:
    """The negative."""
    return ImageOps.invert(image)


def equalize(image: Image.Image, _: float) -> Image.Image:
    """Equalises the histogram."""
    return ImageOps.equalize(image)


def identity(image: Image.Image, _: float) -> Image.Image:
    """The image as it is."""
    return image


def solarize(image: Image.Image, value: float) -> Image.Image:
    """Inverts the pixels above a threshold."""
    return ImageOps.solarize(image, value)


def solarize_add(image: Image.Image, value: float) -> Image.Image:
    """Brightens dark pixels (below 128) by a number of steps."""
    return image.point([min(255, level + int(value)) if level < 128 else level for level in range(256)] * 3)


def posterize(image: Image.Image, value: float) -> Image.Image:
    """Keeps a number of bits of each channel."""
    return ImageOps.posterize(image, int(value))


def contrast(image: Image.Image, value: float) -> Image.Image:
    """Contrast times a factor."""
    return ImageEnhance.Contrast(image).enhance(value)


def color(image: Image.Image, value: float) -> Image.Image:
    """Saturation times a factor."""
    return ImageEnhance.Color(image).enhance(value)


def brightness(image: Image.Image, value: float) -> Image.Image:
    """Brightness times a factor."""
    return ImageEnhance.Brightness(image).enhance(value)


def sharpness(image: Image.Image, value: float) -> Image.Image:
    """Sharpness times a factor."""
    return ImageEnhance.Sharpness(image).enhance(value)


def cutout_abs(image: Image.Image, value: float) -> Image.Image:
    """Fills a square of a side in pixels, at a random place."""
    if value <= 0:
        return image
    width, height = image.size
    left = int(max(0, random.uniform(0, width) - value / 2))
    top = int(max(0, random.uniform(0, height) - value / 2))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(
        (left, top, min(width, left + value), min(height, top + value)), fill=(125, 123, 114)
    )
    return image


OPERATIONS_A: list[tuple[Operation, float, float]] = [
    (auto_contrast, 0, 1), (equalize, 0, 1), (invert, 0, 1), (rotate, 0, 30), (posterize, 4, 8), (solarize, 0, 256),
    (solarize_add, 0, 110), (color, 0.1, 1.9), (contrast, 0.1, 1.9), (brightness, 0.1, 1.9), (sharpness, 0.1, 1.9),
    (shear_x, 0.0, 0.3), (shear_y, 0.0, 0.3), (cutout_abs, 0, 40), (translate_x_abs, 0.0, 100),
    (translate_y_abs, 0.0, 100),
]  # fmt: skip

OPERATIONS_B: list[tuple[Operation, float, float]] = [
    (auto_contrast, 0, 1), (brightness, 0.1, 1.9), (color, 0.1, 1.9), (contrast, 0.1, 1.9), (equalize, 0, 1),
    (identity, 0, 1), (invert, 0, 1), (posterize, 4, 8), (rotate, -30, 30), (sharpness, 0.1, 1.9),
    (shear_x, -0.3, 0.3), (shear_y, -0.3, 0.3), (solarize, 0, 256), (translate_x, -0.3, 0.3),
    (translate_y, -0.3, 0.3),
]  # fmt: skip

OPERATIONS_C: list[tuple[Operation, float, float]] = [
    (auto_contrast, 0, 1), (brightness, 0.05, 0.95), (color, 0.05, 0.95), (contrast, 0.05, 0.95), (equalize, 0, 1),
    (identity, 0, 1), (posterize, 4, 8), (rotate, -30, 30), (sharpness, 0.05, 0.95), (shear_x, -0.3, 0.3),
    (shear_y, -0.3, 0.3), (solarize, 0, 256), (translate_x, -0.3, 0.3), (translate_y, -0.3, 0.3),
]  # fmt: skip


class RandAugment:
    """`n` operations of list A, drawn with replacement, all at strength m / 30 of their range.

    Args:
        n: Number of operations.
        m: Magnitude, 0 to 30.
    """

    def __init__(self, n: int = 2, m: int = 10) -> None:
        if not 0 <= m <= 30:
            raise ValueError(
                f"The magnitude of RandAugment (INPUT.RANDAUGMENT_M) must be between 0 and 30, but got {m}"
            )
        self.n = n
        self.m = m
        self.augment_list = OPERATIONS_A

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, low + (high - low) * self.m / 30)
        return img


class RandAugment2:
    """`n` operations of list B, each applied with probability `p` at a uniform random strength.

    Args:
        n: Number of operations.
        p: Probability of each.
    """

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n = n
        self.p = p
        self.augment_list = OPERATIONS_B

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            if random.random() <= self.p:
                img = operation(img, random.uniform(low, high))
        return img


class RandAugmentFixMatch:
    """`n` operations of list C, each at a uniform random strength.

    Args:
        n: Number of operations.
    """

    def __init__(self, n: int = 2) -> None:
        self.n = n
        self.augment_list = OPERATIONS_C

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, random.uniform(low, high))
        return img
