"""The two augmented views of GOPro, made of one PIL image each: `x_moco` and `x_augmix`.

All randomness comes from torch's global generator, so that a loader's worker that seeds it for an image makes the same
views every time. Sources: MoCo v2's recipe (Chen et al., 2020, arXiv 2003.04297) and AugMix (Hendrycks et al., ICLR
2020, algorithm 1) at severity 1 with its nine operations; degrees of rotation and pixels of translation are whole
numbers there, and so they are here. GOPro's program makes each view of a random crop of its own.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

CROP_SCALE = (0.08, 1.0)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
JITTER_P, GRAYSCALE_P = 0.8, 0.2
AUGMIX_CHAINS, AUGMIX_DEPTH, AUGMIX_SEVERITY, AUGMIX_MAX_SEVERITY = 3, 3, 1.0, 10.0


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class GaussianBlur:
    """Blur a PIL image with a radius (standard deviation, in pixels) drawn uniformly from a range."""

    def __init__(self, radius: tuple[float, float] = (0.1, 2.0)):
        self.radius = radius

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(_uniform(*self.radius)))

    def __repr__(self) -> str:
        return f"GaussianBlur(radius={self.radius})"


def moco_view(
    size: tuple[int, int],
    interpolation: InterpolationMode,
    normalize: Callable[[Tensor], Tensor],
    blur_radius: tuple[float, float] = (0.1, 2.0),
) -> transforms.Compose:
    """The transform PIL image -> `x_moco [3, H, W]`, with the model's size `(H, W)` and pixel normalisation.

    `blur_radius`: range of the blur's radius in pixels of the cropped image.
    """
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=CROP_SCALE, interpolation=interpolation),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=JITTER_P),
            transforms.RandomGrayscale(p=GRAYSCALE_P),
            GaussianBlur(blur_radius),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            normalize,
        ]
    )


def _level(maximum: float) -> float:
    """A strength in `[0, maximum]` for one operation: AugMix draws the level from U(0.1, severity) out of 10."""
    return _uniform(0.1, AUGMIX_SEVERITY) / AUGMIX_MAX_SEVERITY * maximum


def _signed(value: float) -> float:
    return -value if torch.rand(()) < 0.5 else value


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)


AUGMIX_OPERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "posterize": lambda image: ImageOps.posterize(image, 4 - int(_level(4))),
    "rotate": lambda image: image.rotate(_signed(int(_level(30))), resample=Image.Resampling.BILINEAR),
    "solarize": lambda image: ImageOps.solarize(image, 256 - int(_level(256))),
    "shear_x": lambda image: _affine(image, (1, _signed(_level(0.3)), 0, 0, 1, 0)),
    "shear_y": lambda image: _affine(image, (1, 0, 0, _signed(_level(0.3)), 1, 0)),
    "translate_x": lambda image: _affine(image, (1, 0, _signed(int(_level(image.width / 3))), 0, 1, 0)),
    "translate_y": lambda image: _affine(image, (1, 0, 0, 0, 1, _signed(int(_level(image.height / 3))))),
}


def augmix(image: Image.Image) -> Image.Image:
    """Mix an RGB image with three chains of one to three operations (AugMix, algorithm 1; no consistency loss here).

    The chains' weights are Dirichlet(1, 1, 1), the weight of their mixture against the original Beta(1, 1).

    Returns:
        An RGB image of the same size.
    """
    # Dirichlet(1, ..., 1) is a vector of exponentials over its sum; Beta(1, 1) is the uniform distribution.
    draws = -torch.rand(AUGMIX_CHAINS).clamp_min(torch.finfo(torch.float32).tiny).log()
    weights = (draws / draws.sum()).tolist()
    keep = float(torch.rand(()))
    mixture = np.zeros((image.height, image.width, 3), dtype=np.float32)
    operations = list(AUGMIX_OPERATIONS.values())
    for weight in weights:
        chain = image
        for _ in range(int(torch.randint(1, AUGMIX_DEPTH + 1, ()))):
            chain = operations[int(torch.randint(len(operations), ()))](chain)
        mixture += weight * np.asarray(chain, dtype=np.float32)
    mixed = keep * np.asarray(image, dtype=np.float32) + (1 - keep) * mixture
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def augmix_view(
    size: tuple[int, int], interpolation: InterpolationMode, normalize: Callable[[Tensor], Tensor]
) -> transforms.Compose:
    """The transform PIL image -> `x_augmix [3, H, W]`, with the model's size `(H, W)` and pixel normalisation."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=CROP_SCALE, interpolation=interpolation),
            transforms.RandomHorizontalFlip(),
            augmix,
            tvf.to_tensor,
            normalize,
        ]
    )
