"""The class sizes behind unlabelled images: known, assumed to be equal, or read off the images themselves.

Labels are `softmax(L + theta)`, `L` the logits, with one number per class. The family has the fixed point

    theta_c = r log(C mass_c),   mass_c = mean over images of softmax(L + theta)_c.

`r` = 1 takes the predicted class sizes for true ones (the EM iteration of Saerens et al., Neural Computation 2002), 0
leaves the labels as they are, `r` < 0 evens the sizes out (unbalanced optimal transport), and `r` -> -inf makes them
equal (Sinkhorn's iterations, InMaP).

A class that is predicted too often is large, or its text attracts images of other classes. What tells the two apart is
the mean of the logits over the images. Let images of class `c` lie around `m + a t_c`, `t_c` its text and `m` one shift
for all. Then the mean logit of class `j` is `b_j + k sum_c q_c t_c . t_j`, with `q` the class sizes, and the bias `b_j`
of its text is what the sizes leave unexplained (`text_bias`). It is taken off the logits as far as it stands out from
its own uncertainty. What is left is weighed: with variances S of the sizes and B of the remaining bias, both of
`C mass_c`, the posterior mean of size minus bias has

    r = (S - B) / (S + B) = 1 - 2 B / Z,   Z = S + B.

`Z` is read off the images (`spread`): the variance of `C mass_c` without the part that sampling alone makes.

Shapes: `N` images, `C` classes; a leading `D` for several draws at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dassl_clip.clip.rows import Rows

STEPS, CHECK_EVERY = 1000, 10
LEAST_MASS = 1e-6  # of a class, relative to an even share: logarithms stay finite


class Means(NamedTuple):
    """Means over the images of labels `softmax(L + theta)`, float64; of draws each has `[D]` in front."""

    mass: Tensor
    """`[C]`, of the labels of each class; its sum is 1."""
    top: Tensor
    """Of the largest label."""
    square: Tensor
    """Of the sum of squared labels."""


class SetLogits:
    """The logits of one set of images, read in row blocks.

    Args:
        logits: `[N, C]`.
        blocks: Row blocks that cover it.

    Attributes:
        images: `N`, a float64 scalar.
        classes: `C`.
    """

    def __init__(self, logits: Rows, blocks: list[slice]):
        self.logits, self.blocks, self.classes = logits, blocks, logits.shape[1]
        device = logits[slice(0, 1)].device
        self.images = torch.tensor(logits.shape[0], dtype=torch.float64, device=device)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[n, C]` of each block, and the weight of an image in the mean over all."""
        for rows in self.blocks:
            yield self.logits[rows], 1 / self.images


class DrawLogits:
    """The logits of several draws of images.

    Args:
        logits: `[D, N, C]`.
        present: `[D, N]`, 1 for the images of a draw and 0 for what fills it up.

    Attributes:
        images: `[D]`, of each draw, float64.
        classes: `C`.
    """

    def __init__(self, logits: Tensor, present: Tensor):
        self.logits, self.classes = logits, logits.shape[-1]
        self.images = present.sum(dim=-1, dtype=torch.float64)
        self.weights = (present / self.images[:, None])[..., None].to(logits)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All logits, and the weight of each image in the mean over its draw, `[D, N, 1]`."""
        yield self.logits, self.weights


Logits = SetLogits | DrawLogits


def label_means(logits: Logits, theta: Tensor) -> Means:
    """The means of the labels `softmax(L + theta)`, theta `[C]` or `[D, C]`."""
    mass, top, square = torch.zeros_like(theta), torch.zeros_like(logits.images), torch.zeros_like(logits.images)
    for part, weight in logits.parts():
        labels = (part + theta[..., None, :].to(part)).softmax(dim=-1)
        mass += (labels * weight).sum(dim=-2, dtype=torch.float64)
        top += (labels.amax(dim=-1, keepdim=True) * weight).sum(dim=(-2, -1), dtype=torch.float64)
        square += (labels.square() * weight).sum(dim=(-2, -1), dtype=torch.float64)
    return Means(mass, top, square)


def class_mass(logits: Logits, theta: Tensor) -> Tensor:
    """The mean labels of the classes alone, which iterations need: `[C]`, or `[D, C]` of draws, float64."""
    mass = torch.zeros_like(theta)
    for part, weight in logits.parts():
        labels = (part + theta[..., None, :].to(part)).softmax(dim=-1)
        mass += (labels * weight).sum(dim=-2, dtype=torch.float64)
    return mass


def no_theta(logits: Logits) -> Tensor:
    """Zeros `[C]`, or `[D, C]` of draws, float64."""
    images = logits.images
    return torch.zeros((*images.shape, logits.classes), dtype=torch.float64, device=images.device)


def potentials(logits: Logits, r: Tensor | float, steps: int = STEPS, bias: Tensor | None = None) -> Tensor:
    """The fixed point `theta_c = r log(C mass_c)`, float64 `[C]`, or `[D, C]` of draws.

    Args:
        logits: `L`.
        bias: Taken off the logits first, as `theta`; `[C]` or `[D, C]`.
        r: At most 1; `-inf` gives Sinkhorn's limit. A number, or `[D]`.
        steps: The most iterations; they end where theta stays as it is, to the precision of the logits. `r` near 1 is
            slow where many images are in dispute.
    """
    even, dtype = 1 / logits.classes, next(logits.parts())[0].dtype
    r = torch.as_tensor(r, dtype=torch.float64, device=logits.images.device).expand(logits.images.shape)[..., None]
    damped = torch.where(r.isinf(), 1.0, r / (r - 1))  # Sinkhorn's form: for r < 0 it does not oscillate
    theta = no_theta(logits)
    for step in range(1, steps + 1):
        surplus = (class_mass(logits, theta if bias is None else theta - bias) / even).clamp_min(LEAST_MASS).log()
        new = torch.where(r >= 0, r * surplus, damped * (theta - surplus))
        moved, theta = (new - theta).abs().amax(), new
        if step % CHECK_EVERY == 0 and moved < 4 * torch.finfo(dtype).eps:
            break
    return theta


def spread(means: Means, images: Tensor) -> Tensor:
    """`Z`: the variance over classes of `C mass_c`, without the part that drawing `N` images at random makes."""
    classes = means.mass.shape[-1]
    seen = (classes * means.mass - 1).square().mean(dim=-1)
    return seen - (classes * means.square - 1) / images


# ------------------------------------------------------------------------------------------------ which sizes to take

BIAS = 0.2  # B, of C mass: chosen on the emoji icons
GUARD = 0.03  # confidence that evening out may cost before sizes are taken to be uneven: from label-free statistics
LEAN = 2.0  # images per class at which half of a score is the proxies': chosen on the emoji icons
SLACK = 0.13  # variance of text bias, in squared logits, that texts are off by anyway: chosen on the emoji icons
MISFIT = 1.0  # variance, in squared logits, of how a class's images are off its text: read off whole sets, no labels
RIDGE = 0.05  # weight of the slope under the labels as they are, beside EM's: 1 - sum_c q_c^2 or less
EM_STEPS = 30


class Evidence(NamedTuple):
    """What the mean logits say of the texts; of draws each field has `[D]` in front."""

    bias: Tensor
    """`b`, `[C]`, mean 0, in logits."""
    variance: Tensor
    """Of `b` over classes."""
    noise: Tensor
    """The part of it that another draw of classes and images would change."""

    @property
    def kept(self) -> Tensor:
        """The share of `b` that stands out: `1 - (SLACK + noise) / variance`, at least 0 (James and Stein)."""
        return (1 - (SLACK + self.noise) / self.variance.clamp_min(1e-12)).clamp(0, 1)


def text_bias(logits: Logits, gram: Tensor) -> Evidence:
    """The bias of each class's text, from mean logits that class sizes do not explain.

    Sizes and labels are those of EM (`r` = 1), the hypothesis that explains most. The factor `k` of the texts'
    products is the slope of an image's logits on them; where EM leaves few classes it leans on the slope under the
    labels as they are. The noise is the variance of a mean over clusters of images, the predicted classes (Liang and
    Zeger, Biometrika 1986), and at least what classes are off their texts; over `1 - sum_c q_c^2`, as a single class
    says nothing.

    Args:
        logits: `L`.
        gram: `G`, products of the class proxies `[C, C]`.
    """
    gram, classes = gram.double(), logits.classes
    plain, em = (_label_sums(logits, theta) for theta in (no_theta(logits), potentials(logits, 1.0, EM_STEPS)))
    up, down = em.along(gram)
    plain_up, plain_down = plain.along(gram)
    slope = (up + RIDGE * plain_up / plain_down.clamp_min(1e-12)) / (down + RIDGE)
    bias = _centred(em.mean - slope[..., None] * (em.size @ gram))
    clusters = _centred(em.products - slope[..., None, None] * (em.pairs @ gram))
    clusters = clusters - em.size[..., None] * bias[..., None, :]
    alone = em.size.square().sum(dim=-1)  # 1 / effective number of classes
    noise = (clusters.square().sum(dim=(-2, -1)) / classes).maximum(MISFIT * alone) / (1 - alone).clamp_min(1e-12)
    return Evidence(bias, bias.square().mean(dim=-1), noise)


class _LabelSums(NamedTuple):
    """Means over the images of products of labels `softmax(L + theta)`, float64; of draws with `[D]` in front."""

    mean: Tensor  # of the logits, [C]
    size: Tensor  # of the labels, [C]
    own: Tensor  # of the logit of an image's own label
    products: Tensor  # of labels and logits, [C, C]
    pairs: Tensor  # of labels and labels, [C, C]

    def along(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance of an image's logits with its label's products of texts, and their variance: slope times."""
        explained = self.size @ gram
        down = (self.size * gram.diagonal()).sum(dim=-1) - (self.size * explained).sum(dim=-1)
        return self.own - (self.size * self.mean).sum(dim=-1), down


def _label_sums(logits: Logits, theta: Tensor) -> _LabelSums:
    classes = logits.classes
    mean, size = no_theta(logits), no_theta(logits)
    products, pairs = (torch.zeros((*theta.shape, classes), dtype=torch.float64, device=theta.device) for _ in range(2))
    own = torch.zeros_like(logits.images)
    for part, weight in logits.parts():
        labels = (part + theta[..., None, :].to(part)).softmax(dim=-1)
        weighted = labels * weight
        mean += (part * weight).sum(dim=-2, dtype=torch.float64)
        size += weighted.sum(dim=-2, dtype=torch.float64)
        own += (weighted * part).sum(dim=(-2, -1), dtype=torch.float64)
        products += (weighted.mT @ part).double()
        pairs += (weighted.mT @ labels).double()
    return _LabelSums(mean, size, own, products, pairs)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


class Choice(NamedTuple):
    """The labels that were chosen, `softmax(L + theta)`, and why; of draws each field has `[D]` in front."""

    theta: Tensor
    """`[C]`, float64."""
    r: Tensor
    """How predicted sizes are taken: 1 true, 0 as they are, below 0 evened out; NaN for known sizes."""
    share: Tensor
    """`w = N / (N + 2 C)`, of the proxies in the scores."""
    spread: Tensor
    """`Z`."""
    cost: Tensor
    """Confidence that evening the sizes out (r = -1) costs: by how much the mean largest label falls."""
    bias: Tensor
    """Standard deviation over classes of the text bias that was taken off, in logits."""


def proxy_share(logits: Logits) -> Tensor:
    """The share of the proxies in the scores, `N / (N + 2 C)`; 0 for a single image, which says nothing of others."""
    share = logits.images / (logits.images + LEAN * logits.classes)
    return torch.where(logits.images > 1, share, 0.0)


def share_of_new(share: Tensor) -> Tensor:
    """The share of the proxies in the scores of images that they were not learned from, `N / (N + 4 C)`.

    Proxies fit the images that they are learned from better than others. The 4 was chosen on streams of the emoji
    icons, of 2, 4 and 8.
    """
    return share / (2 - share)


def choose(logits: Logits, gram: Tensor | None = None) -> Choice:
    """The rule: text bias and `r` from the images alone, without labels.

    Args:
        logits: `L`.
        gram: Products of the class proxies `[C, C]`; None: no text bias is looked for.
    """
    share, bias = proxy_share(logits), no_theta(logits)
    if gram is not None:
        evidence = text_bias(logits, gram)
        bias = torch.where((logits.images > 1)[..., None], evidence.kept[..., None] * evidence.bias, 0.0)
    before = label_means(logits, -bias)
    z = spread(before, logits.images)
    even = label_means(logits, potentials(logits, -1.0, bias=bias) - bias)
    cost = before.top - even.top
    r = torch.where(z > 0, 1 - 2 * BIAS / z, -1.0)
    r = torch.where(cost < GUARD, -1.0, r).maximum(-share)
    return Choice(potentials(logits, r, bias=bias) - bias, r, share, z, cost, bias.square().mean(dim=-1).sqrt())


def fixed(logits: Logits, r: float) -> Choice:
    """The labels for a given `r`, of the logits as they are."""
    chosen = choose(logits)
    return chosen._replace(theta=potentials(logits, r), r=torch.full_like(chosen.r, r))


def known(logits: Logits, sizes: Tensor, steps: int = STEPS) -> Choice:
    """The labels whose means are known class sizes (Sinkhorn's iterations).

    Args:
        logits: `L`.
        sizes: `[C]`, shares of the classes, sum 1; a class of size 0 gets no image.
    """
    chosen = choose(logits)
    target = sizes.to(chosen.theta).log()
    theta = target.expand(chosen.theta.shape)
    for step in range(1, steps + 1):
        mass = class_mass(logits, theta).clamp_min(torch.finfo(torch.float64).tiny).log()
        new = torch.where(target.isinf(), target, theta + target - mass)
        moved, theta = (new - theta).nan_to_num(0.0).abs().amax(), new
        if step % CHECK_EVERY == 0 and moved < 1e-9:
            break
    return chosen._replace(theta=theta, r=torch.full_like(chosen.r, float("nan")))


def marginal_potentials(logits: DrawLogits, gamma: float, iterations: int) -> Tensor:
    """`sinkhorn_potentials` of every draw, `[D, C]`: the marginal is proportional to (predicted sizes)^gamma."""
    theta = no_theta(logits)
    target = torch.full_like(theta, -math.log(logits.classes))
    for iteration in range(iterations):
        mass = class_mass(logits, theta).clamp_min(torch.finfo(torch.float64).tiny).log()
        if iteration == 0:
            target = (gamma * mass).log_softmax(dim=-1)
        theta = theta + target - mass
    return theta
