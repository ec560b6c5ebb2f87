"""TDA: two caches of features of the images seen so far, one of confident and one of doubtful ones, beside CLIP.

Source: Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models" (TDA), CVPR 2024, arXiv 2403.18293.
An image `x` with logits `L`, probabilities `p` and an entropy belongs to its likeliest class. The positive cache holds
the features `k` of least entropy of each class, the negative one those of least entropy among the images with a
relative entropy within bounds, and which of their probabilities lie within bounds. Scores are

    L + a sum_pos exp(-b (1 - x.k)) onehot(class of k) - a' sum_neg exp(-b' (1 - x.k)) [lower < p_k < upper]

One image at a time, and the caches take an image before it is scored: its scores depend on those before it and on
itself. `a` and `a'` are logits at a logit scale of 100 and go with the scale.

The authors' program (MIT) has `a` and `b` of its own for each of 15 data sets, found by a search; the defaults here are
ImageNet's. Relative entropy there is nats over log2 C, never above 0.69, and so it is here, since bounds are in its
units; with one class, where the program divides by zero, it is 0. The program draws the order of the images by a loader
without a seed of its own, and takes a batch of images for views of one.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.transductive import ITSELF, Images, OnlineTrainer, Step

Pair = tuple[float, float]


class Cache:
    """The features of least entropy of each class; nothing is read on the host.

    Args:
        classes: `C`.
        shots: `S`, the most features per class.
        like: Feature `[E]` whose type and device the cache has.

    Attributes:
        keys: `[C, S, E]`.
        entropies: `[C, S]`, infinite where there is no feature.
    """

    def __init__(self, classes: int, shots: int, like: Tensor):
        self.keys = like.new_zeros(classes, shots, len(like))
        self.entropies = like.new_full((classes, shots), math.inf)

    def offer(self, feature: Tensor, label: Tensor, entropy: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take a feature `[E]` of class `label [1]` into an empty slot, or in place of that of most entropy.

        Returns:
            Whether it entered, `[1]`, and the class and slot. One of infinite entropy never enters.
        """
        place = label, self.entropies[label].argmax(dim=1)
        enters = entropy < self.entropies[place]
        self.entropies[place] = torch.where(enters, entropy, self.entropies[place])
        self.keys[place] = torch.where(enters[:, None], feature, self.keys[place])
        return enters, place

    def affinities(self, feature: Tensor, sharpness: float) -> Tensor:
        """`exp(-b (1 - x.k))`, `[C, S]`; 0 where there is no feature."""
        return (sharpness * (self.keys @ feature - 1)).exp() * self.entropies.isfinite()


class Adapter:
    """Scores images one after another.

    Args:
        proxies: `[C, E]`; their number, type and device are taken.
        scale: The logit scale.
        positive: `a`, `b`.
        negative: `a'`, `b'`.
        shots: Of the positive and of the negative cache, per class.
        entropy: Bounds of the relative entropy in the negative cache, excluded.
        mask: Bounds of the probabilities that it holds, excluded.
    """

    def __init__(
        self,
        proxies: Tensor,
        scale: float,
        positive: Pair = (2.0, 5.0),
        negative: Pair = (0.117, 1.0),
        shots: tuple[int, int] = (3, 2),
        entropy: Pair = (0.2, 0.5),
        mask: Pair = (0.03, 1.0),
    ):
        classes = len(proxies)
        self.positive, self.negative = (Cache(classes, count, proxies[0]) for count in shots)
        self.masks = proxies.new_zeros(classes, shots[1], classes)
        (gain, self.sharpness), (loss, self.negative_sharpness) = positive, negative
        self.gain, self.loss = gain * scale / 100, loss * scale / 100
        self.entropy, self.mask = entropy, mask
        self.largest = math.log2(classes) if classes > 1 else 1.0

    def __call__(self, feature: Tensor, logits: Tensor) -> Tensor:
        """Logits `[C]` of the next image, from its feature `[E]` and logits `[C]`."""
        logs = logits.log_softmax(dim=0)
        shares, label = logs.exp(), logits.argmax(dim=0, keepdim=True)
        entropy = -(shares * logs).sum(dim=0, keepdim=True)  # [1]
        self.positive.offer(feature, label, entropy)
        doubtful = within(entropy / self.largest, self.entropy)
        enters, place = self.negative.offer(feature, label, torch.where(doubtful, entropy, math.inf))
        mask = within(shares, self.mask).to(shares)
        self.masks[place] = torch.where(enters[:, None], mask, self.masks[place])
        gains = self.positive.affinities(feature, self.sharpness).sum(dim=1)
        losses = self.negative.affinities(feature, self.negative_sharpness).flatten() @ self.masks.flatten(0, 1)
        return logits + self.gain * gains - self.loss * losses


def within(values: Tensor, bounds: Pair) -> Tensor:
    """Which values lie between two bounds, these excluded."""
    return (bounds[0] < values) & (values < bounds[1])


def are_bounds(value: Any) -> bool:
    """Whether a setting is two numbers in their order."""
    numbers = isinstance(value, list | tuple) and all(isinstance(bound, int | float) for bound in value)
    return numbers and len(value) == 2 and value[0] < value[1]


WEIGHT = (lambda value: 0 <= value < math.inf, "a number, 0 or more")
SHOTS = (lambda value: value >= 1, "a number of features per class, 1 or more")
BOUNDS = (are_bounds, "two numbers such as (0.2, 0.5), the lower one first")


@TRAINER_REGISTRY.register()
class TDA(OnlineTrainer):
    """Caches of confident and of doubtful images, one image at a time; nothing is trained."""

    needs = ITSELF
    settings = {
        **OnlineTrainer.settings,
        "ALPHA": 2.0,  # logits at a logit scale of 100
        "BETA": 5.0,
        "SHOTS": 3,
        "NEGATIVE_ALPHA": 0.117,  # the same
        "NEGATIVE_BETA": 1.0,
        "NEGATIVE_SHOTS": 2,
        "ENTROPY": (0.2, 0.5),
        "MASK": (0.03, 1.0),
    }
    limits = {
        **dict.fromkeys(("ALPHA", "BETA", "NEGATIVE_ALPHA", "NEGATIVE_BETA"), WEIGHT),
        **dict.fromkeys(("SHOTS", "NEGATIVE_SHOTS"), SHOTS),
        **dict.fromkeys(("ENTROPY", "MASK"), BOUNDS),
    }

    def begin(self, images: Images, horizon: int) -> Step:
        """Empty caches; how many images will come is not needed."""
        node = self.node
        positive, negative = (node.ALPHA, node.BETA), (node.NEGATIVE_ALPHA, node.NEGATIVE_BETA)
        shots = node.SHOTS, node.NEGATIVE_SHOTS
        return Adapter(images.proxies, images.scale, positive, negative, shots, node.ENTROPY, node.MASK)
