"""Synthetic unlabelled images for transductive methods: Gaussian classes, texts that are off, sizes as asked for.

Images of class `c` lie around the image tower's offset plus the class's direction; its text lies around the text
tower's offset plus a twisted copy of that direction. `bias` leans texts of some classes towards the offset of all
images, so that these classes take images of others: in logits, a normal deviation per class of that size.

Shapes: `N` images, `C` classes, `E` dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """What is drawn.

    Attributes:
        classes: `C`.
        dimensions: `E`.
        sizes: images per class: `even` (20 each), `uneven` (8 to 40), `long tail` (60 down to 2).
        bias: standard deviation of the classes' bias, in logits.
        scale: logit scale; 0: the calibrated one, at which the likelihood of the labels is largest.
        noise: length of an image's own part relative to the class's, in 64 dimensions; it grows with their root, so
            that classes are confused as often in any.
        twist: length of a text's own part relative to the class's.
    """

    classes: int = 50
    dimensions: int = 64
    sizes: str = "uneven"
    bias: float = 0.0
    scale: float = 0.0
    noise: float = 1.6
    twist: float = 0.9

    @property
    def name(self) -> str:
        """In a table: `C 50, uneven, scale auto, bias 2`."""
        scale = f"scale {self.scale:g}" if self.scale else "calibrated"
        return f"C {self.classes}, {self.sizes}, {scale}" + (f", bias {self.bias:g}" if self.bias else "")


def draw(mixture: Mixture, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, float]:
    """Features `[N, E]` and text proxies `[C, E]` of length 1, labels `[N]`, and the logit scale."""
    generator = np.random.default_rng([seed, mixture.classes, mixture.dimensions])
    c, e = mixture.classes, mixture.dimensions

    def directions(count: int) -> np.ndarray:
        rows = generator.normal(size=(count, e))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    counts = {
        "even": np.full(c, 20),
        "uneven": generator.integers(8, 41, c),
        "long tail": np.round(60 * (2 / 60) ** (np.arange(c) / (c - 1))).astype(int),
    }[mixture.sizes]
    labels = np.repeat(np.arange(c), counts)
    classes, image_offset, text_offset = directions(c), directions(1), directions(1)
    root = (e / 64) ** 0.5
    images = image_offset + classes[labels] + mixture.noise * root * directions(len(labels))
    texts = text_offset + classes + mixture.twist * directions(c)
    features, proxies = (F.normalize(torch.from_numpy(rows).float(), dim=1) for rows in (images, texts))
    truth = torch.from_numpy(labels)
    scale = mixture.scale or calibrated(features @ proxies.T, truth)
    if mixture.bias:
        lean = torch.from_numpy(generator.normal(size=(c, 1))).float() * mixture.bias / scale
        centre = F.normalize(features.mean(0), dim=0)
        proxies = F.normalize(proxies + lean * centre / (features @ centre).mean(), dim=1)
    return features, proxies, truth, scale


def calibrated(cosines: Tensor, labels: Tensor) -> float:
    """The logit scale with the largest likelihood of the labels, of 5 to 500 in steps of 5 %."""
    scales = [5 * 1.05**k for k in range(95)]
    return min(scales, key=lambda scale: float(F.cross_entropy(scale * cosines, labels)))
