"""White-box attacks inside a ball of the maximum norm, on any function from pixels to scores.

Sources: FGSM, Goodfellow et al., ICLR 2015 (arXiv 1412.6572); PGD, Madry et al., ICLR 2018 (arXiv 1706.06083); CW, the
margin loss of Carlini and Wagner, S&P 2017 (arXiv 1608.04644), with PGD's steps. The settings are those of CLAP (ECCV
2024): epsilon 0.031; FGSM one step of epsilon from the image; PGD and CW 20 steps of epsilon / 10 from a uniform start
in the ball; confidence 50.

Attack space. Sound: pixels in [0, 1], with the normalisation inside the scores (`pixel_space`). CLAP's authors hand in
CLIP-normalised images and clamp those to [0, 1]; the same functions do that for such images and scores, and the clamp
then takes the result out of the ball. The scores' scale is the caller's choice: the authors' are plain cosines.

Shapes: `B` images `[B, 3, H, W]` of any dtype, `C` classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.results.errors import UserError, did_you_mean

EPSILON = 0.031
CONFIDENCE = 50.0

Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttackSpec:
    """An attack's settings.

    Attributes:
        loss: `cross_entropy` or `margin`, which the attack raises.
        steps: Number of steps.
        step: Length of a step in multiples of epsilon.
        random_start: Whether it starts at a uniform draw from the ball, and not at the image.
    """

    loss: str
    steps: int
    step: float
    random_start: bool


ATTACKS = {
    "FGSM": AttackSpec("cross_entropy", steps=1, step=1.0, random_start=False),
    "PGD-20": AttackSpec("cross_entropy", steps=20, step=0.1, random_start=True),
    "CW-20": AttackSpec("margin", steps=20, step=0.1, random_start=True),
}


def attack(
    spec: str | AttackSpec,
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    epsilon: float = EPSILON,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attacked images: no entry moves by more than `epsilon`, except into `[low, high]`.

    Each image is attacked on its own, whatever else is in the batch, as far as `scores` treats it so. Gradients are
    taken with respect to the pixels alone.

    Args:
        spec: A name of `ATTACKS`, or an attack's own settings.
        scores: `[B, 3, H, W]` to `[B, C]`, differentiable.
        images: `[B, 3, H, W]`; not changed.
        labels: `[B]`.
        epsilon: Radius of the ball, in the units of `images`.
        low: Least value of an entry.
        high: Greatest value of an entry.
        generator: A CPU generator for the random starts, the same on every device; handed from batch to batch it gives
            each image the same start for every batch size. None takes PyTorch's own.

    Returns:
        `[B, 3, H, W]`, detached.

    Raises:
        UserError: An unknown attack, a setting out of range, labels or scores that do not fit, or scores without a
            gradient to the pixels.
    """
    if isinstance(spec, str):
        if spec not in ATTACKS:
            hint = did_you_mean(spec, ATTACKS, cutoff=0.4)
            raise UserError(f"unknown attack {spec!r}.{hint} There are {', '.join(ATTACKS)}")
        spec = ATTACKS[spec]
    if spec.loss not in LOSSES or spec.steps < 1 or spec.step < 0:
        raise UserError(f"an attack raises one of {', '.join(LOSSES)} in at least 1 step of at least 0, got {spec}")
    if epsilon < 0 or low >= high:
        raise UserError(f"epsilon must be at least 0 and low under high, got {epsilon}, {low} and {high}")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{len(images)} images need labels [{len(images)}], got {list(labels.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        clean, labels = images.detach().clone(), labels.detach().to(images.device).clone()
        floor, ceiling = (clean - epsilon).clamp(low, high), (clean + epsilon).clamp(low, high)
        current = clean
        if spec.random_start:
            noise = torch.rand(clean.shape, generator=generator).to(clean)
            current = _between(clean + epsilon * (2 * noise - 1), floor, ceiling)
        for _ in range(spec.steps if len(clean) else 0):
            direction = _gradient(LOSSES[spec.loss], scores, current, labels).sign()
            current = _between(current + spec.step * epsilon * direction, floor, ceiling)
    return current


def margin_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the best other class is above the true one, at most `CONFIDENCE` (Carlini and Wagner's f6, negated).

    Args:
        scores: `[B, C]`; of a single class there is no other, and 0 stands for its score.
        labels: `[B]`.

    Returns:
        `[B]`.
    """
    true = scores.gather(1, labels[:, None])[:, 0]
    if scores.shape[1] == 1:
        return (-true).clamp_max(CONFIDENCE)
    is_true = F.one_hot(labels, scores.shape[1]).bool()
    other = scores.masked_fill(is_true, float("-inf")).max(dim=1).values
    return (other - true).clamp_max(CONFIDENCE)


def pixel_space(encode: Scores, mean: Sequence[float], std: Sequence[float]) -> Scores:
    """A function of normalised images `[B, 3, H, W]` as a function of pixels in [0, 1]; `mean`, `std` per channel."""
    return lambda pixels: encode((pixels - _channels(mean, pixels)) / _channels(std, pixels))


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels in [0, 1] of normalised images `[B, 3, H, W]`, rounding errors beyond 0 and 1 cut off."""
    return (images * _channels(std, images) + _channels(mean, images)).clamp(0, 1)


LOSSES = {
    "cross_entropy": lambda scores, labels: F.cross_entropy(scores, labels, reduction="none"),
    "margin": margin_loss,
}


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], scores: Scores, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's loss with respect to its own entries, `[B, 3, H, W]`."""
    images = images.detach().requires_grad_()
    values = scores(images)
    if values.dim() != 2 or len(values) != len(images):
        raise UserError(f"scores of {len(images)} images must be [{len(images)}, C], got {list(values.shape)}")
    if not values.requires_grad:
        raise UserError(
            "the scores have no gradient to the images; their function must not use torch.no_grad or detach features"
        )
    values = values.float() if values.dtype.itemsize < 4 else values
    return torch.autograd.grad(loss(values, labels).sum(), images)[0]


def _between(x: Tensor, floor: Tensor, ceiling: Tensor) -> Tensor:
    """`x` moved into the box from `floor` to `ceiling`."""
    return torch.minimum(torch.maximum(x, floor), ceiling).detach()


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
