"""IOTA-like: InMaP's proxies from labels whose class sizes are asked to be equal, but need not be.

Source: "IOTA", AAAI 2026 (paper 39690): its equations. No program of the authors was seen, and what the text leaves
open is assumed here, so expect other numbers than the authors':

- Labels minimise `<C, P> - eps H(P) + lambda KL(P^T 1 || nu)` over `P` with rows of 1/N, with `C = 1 - X T` and `eps`
  1 over the logit scale. With `b = log v` the labels are `softmax(L + b)`, and a step of the unbalanced Sinkhorn
  iteration is `b_c <- kappa (b_c - log(mass_c / nu_c))`, `kappa = lambda / (lambda + eps)`. Assumed: 100 steps from
  `b = 0`.
- `nu` is uniform, or empirical: the mean of CLIP's labels (assumed), which leaves these as they are.
- With `p_c` the mean label of class `c`, its threshold is `g_c = p_c / max(p) * mean_i max_k P_ik`. Uniform: rows
  whose largest label exceeds the threshold of its class become one-hot. Empirical: labels above the threshold become 1
  and all others 0, so an image counts for several classes, or for none.
- InMaP's cross-entropy is minimised over the proxies, from the text's. Assumed: at 4 over the logit scale, as in InMaP,
  by InMaP's solver (in batches of fewer images than dimensions as InMaP solves its draws), and scores are `X W`
  without the class sizes.

`lambda` is in units of the cosine, as the cost is. With eps 0.01 the exponents kappa lie near 1 for the lambdas of the
paper (0.05 to 5): nearly balanced.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.temperatures import AUTO, parse_temperature
from dassl_clip.engine.transductive import Images, TransductiveTrainer

from .inmap.draws import vision_proxies
from .inmap.labels import learn_vision_proxy

MARGINALS = ("uniform", "empirical")
IMAGE_TEMPERATURE = 4.0  # what `auto` stands for, over the logit scale
STEPS, TOLERANCE = 500, 1e-5  # of a small batch


def transported_labels(logits: Tensor, strength: float, marginal: str = "uniform", steps: int = 100) -> Tensor:
    """Labels `[N, C]`, rows sum to 1, that are drawn towards class sizes.

    Args:
        logits: `[N, C]`, whose softmax are CLIP's labels.
        strength: lambda over eps; 0 leaves the labels as they are, and labels tend to the sizes as it grows.
        marginal: "uniform" or "empirical", the sizes.
        steps: Of the iteration.
    """
    logs = logits.log_softmax(dim=1)

    def log_mass(logs: Tensor) -> Tensor:
        return logs.logsumexp(dim=0) - math.log(len(logs))

    sizes = log_mass(logs) if marginal == "empirical" else torch.full_like(logs[0], -math.log(logs.shape[1]))
    potentials = torch.zeros_like(sizes)
    for _ in range(steps):
        mass = log_mass((logs + potentials).log_softmax(dim=1))
        potentials = strength / (strength + 1) * (potentials - (mass - sizes))
    return (logs + potentials).softmax(dim=1)


def hardened(labels: Tensor, marginal: str = "uniform") -> tuple[Tensor, Tensor]:
    """Labels after the threshold of each class.

    Args:
        labels: `[N, C]`, rows sum to 1.
        marginal: "uniform": a row above its class's threshold becomes one-hot, the others stay; "empirical": one row
            of one class for each label above the threshold.

    Returns:
        Indices of the images `[M]`, and their labels `[M, C]`, rows sum to 1.
    """
    mass = labels.mean(dim=0)
    # P > g as a ratio: where all labels of a class agree, as with one image, none exceeds the threshold by rounding.
    threshold = labels.amax(dim=1).mean() / mass.max()
    if marginal == "empirical":
        images, classes = (labels / mass > threshold).nonzero(as_tuple=True)
        return images, F.one_hot(classes, labels.shape[1]).to(labels)
    top, likeliest = labels.max(dim=1)
    is_hard = (top / mass[likeliest] > threshold)[:, None]
    one_hot = F.one_hot(likeliest, labels.shape[1]).to(labels)
    return torch.arange(len(labels), device=labels.device), torch.where(is_hard, one_hot, labels)


def iota(
    features: Tensor,
    logits: Tensor,
    proxies: Tensor,
    scale: float,
    weight: float = 0.5,
    marginal: str = "uniform",
    image_temperature: float = 0.04,
) -> Tensor:
    """Proxies in vision space, `[C, E]`; those given, where no label exceeds its threshold.

    Args:
        features: `[N, E]`, of length 1.
        logits: `[N, C]`.
        proxies: `[C, E]`, of length 1, where the learned ones start.
        scale: The logit scale, 1 / eps.
        weight: lambda.
        marginal: "uniform" or "empirical".
        image_temperature: Of the cross-entropy.
    """
    images, labels = hardened(transported_labels(logits, weight * scale, marginal), marginal)
    if len(images) == 0:
        return proxies
    if len(features) >= features.shape[1]:
        return learn_vision_proxy(features[images], proxies.T, labels, image_temperature).T
    summed = labels.new_zeros(logits.shape).index_add_(0, images, labels)  # an image of several classes once
    few = vision_proxies(features[None], proxies.T, summed[None], image_temperature, STEPS, TOLERANCE)
    return few[0].T


@TRAINER_REGISTRY.register()
class IOTA(TransductiveTrainer):
    """InMaP's proxies from labels under an unbalanced class marginal; the whole set at once."""

    settings = {
        **TransductiveTrainer.settings,
        "LAMBDA": 0.5,
        "MARGINAL": "uniform",  # or empirical
        "IMAGE_TEMPERATURE": AUTO,  # a number; auto: 4 over the logit scale (0.04 for OpenAI's models); auto:K: K
    }
    limits = {
        "LAMBDA": (lambda value: 0 <= value < math.inf, "a weight, 0 or more"),
        "MARGINAL": (lambda value: value in MARGINALS, f"one of {', '.join(MARGINALS)}"),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse a temperature that is not positive."""
        super().check_cfg(cfg)
        self._temperature(cfg.TRAINER.IOTA, 1.0)

    @staticmethod
    def _temperature(node: CfgNode, unit: float) -> float:
        return parse_temperature(node.IMAGE_TEMPERATURE, "TRAINER.IOTA.IMAGE_TEMPERATURE", unit, IMAGE_TEMPERATURE)

    def joint_logits(self, images: Images) -> Tensor:
        """Cosines with the learned proxies times the logit scale, `[N, C]`."""
        node, scale = self.node, images.scale
        tau = self._temperature(node, 1 / scale)
        proxies = iota(images.features, images.logits, images.proxies, scale, node.LAMBDA, node.MARGINAL, tau)
        return scale * images.features @ proxies.T
