"""TransCLIP: labels of all images at once, from a Gaussian per class, a graph of neighbours, and CLIP's own labels.

Source: Zanella, Gérin, Ben Ayed, "Boosting Vision-Language Models with Transduction" (TransCLIP), NeurIPS 2024, arXiv
2406.01837, without labelled images. Labels `z [N, C]` maximise

    1/N sum_i z_i . log p_i + sum_ij w_ij z_i . z_j - 1/N sum_i KL_lambda(z_i || y_i)

where `y` are CLIP's labels, `p_ic` is the density of image `i` under a Gaussian with mean `mu_c` and variances (one
vector `[E]`) that all classes share, and `w_ij` is the cosine of an image and one of its nearest neighbours. Labels and
Gaussians are renewed in turn. The weights 1/50 of the densities and 1/6 of the graph beside CLIP's labels are constants
of the authors' program; they do not go with the logit scale.

The authors' program is under AGPL-3.0; this file is written from the formulas. Its defects, which are not here: the
number of classes is read off the labels of the test images, so it stops where a class is missing; it needs 8 images (4
without the start from images) and more than one class; a class whose labels all underflow has a mean of NaN; it runs
on CUDA only. No array of `N x C x E` numbers is needed: squares are expanded into matrix products, on centred features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.neighbours import neighbour_graph
from dassl_clip.engine.transductive import Images, TransductiveTrainer

DENSITY_WEIGHT = 1 / 50
GRAPH_WEIGHT = 1 / 6
CONFIDENT = 8  # images per class that the first means are made of
SMALLEST_VARIANCE = 1e-9
STARTS = ("images", "text")


def transclip(
    features: Tensor,
    logits: Tensor,
    proxies: Tensor,
    weight: float = 1.0,
    start: str = "images",
    neighbours: int = 3,
    outer_steps: int = 10,
    inner_steps: int = 5,
) -> Tensor:
    """Logarithms `[N, C]` of the labels `z`.

    Args:
        features: `[N, E]`, of length 1.
        logits: `[N, C]`, whose softmax are CLIP's labels.
        proxies: `[C, E]`, of length 1; read where `start` is "text".
        weight: lambda, of CLIP's labels.
        start: "images": the first means are those of the 8 most confident images of each class (all, where there are
            fewer), "text": the proxies, as in StatA's copy of the program.
        neighbours: Of each image in the graph; `N - 1` where there are fewer others.
        outer_steps: Times that the Gaussians are renewed.
        inner_steps: Times that all labels are renewed in between.
    """
    graph, prior = neighbour_graph(features, neighbours), logits.log_softmax(dim=1)
    logs, labels, centre = prior, prior.exp(), features.mean(dim=0)
    centred = features - centre
    means = confident_means(features, prior) if start == "images" else proxies
    variances = torch.full_like(features[:1], 1 / features.shape[1])
    for step in range(outer_steps + 1):
        if step:
            means = class_means(features, logs)
            variances = shared_variances(centred, labels, means - centre)
        logs = renewed_labels(centred, weight * prior, means - centre, variances, graph, labels, inner_steps)
        labels = logs.exp()
    return logs


def confident_means(features: Tensor, prior: Tensor) -> Tensor:
    """The first means `[C, E]`, from log labels `[N, C]`: of the most confident images, weighted by their labels."""
    logs, index = prior.topk(min(CONFIDENT, len(prior)), dim=0)
    # A softmax over images: also a class whose labels all underflow has weights that sum to 1.
    return F.normalize((logs.softmax(dim=0)[..., None] * features[index]).sum(dim=0), dim=1)


def class_means(features: Tensor, logs: Tensor) -> Tensor:
    """Means of length 1, `[C, E]`, of features weighted by labels, given as logarithms `[N, C]`."""
    return F.normalize(logs.softmax(dim=0).T @ features, dim=1)


def shared_variances(centred: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Variances `[1, E]` about the means of all classes: `1/N sum_ic z_ic (x_id - mu_cd)^2`.

    Args:
        centred: Features minus their mean, `[N, E]`.
        labels: `[N, C]`, rows sum to 1.
        means: Of the classes, minus the same, `[C, E]`.
    """
    squares = centred.square().sum(dim=0) - 2 * (means * (labels.T @ centred)).sum(dim=0)
    squares += (labels.sum(dim=0)[:, None] * means.square()).sum(dim=0)
    return (squares / len(centred)).clamp_min(SMALLEST_VARIANCE)[None]


def renewed_labels(
    centred: Tensor, prior: Tensor, means: Tensor, variances: Tensor, graph: Tensor, labels: Tensor, steps: int
) -> Tensor:
    """Log labels `[N, C]` under fixed Gaussians; in each step all rows are renewed from those of the step before.

    Args:
        centred: Features minus their mean, `[N, E]`.
        prior: Weighted logarithms of CLIP's labels, `[N, C]`.
        means: Of the classes, minus the same, `[C, E]`.
        variances: `[C, E]`, or `[1, E]` for all classes.
        graph: `W + W^T`, sparse, `[N, N]`.
        labels: `[N, C]`.
        steps: How many, 1 or more.
    """
    weights = 1 / variances
    # -1/2 sum_d ((x_d - mu_d)^2 / v_d + log v_d), as matrix products
    densities = centred @ (means * weights).T - centred.square() @ weights.T / 2
    densities -= ((means.square() * weights).sum(dim=1) + variances.log().sum(dim=1)) / 2
    fixed = prior + DENSITY_WEIGHT * densities
    for _ in range(steps):
        logs = (fixed + GRAPH_WEIGHT * torch.sparse.mm(graph, labels)).log_softmax(dim=1)
        labels = logs.exp()
    return logs


@TRAINER_REGISTRY.register()
class TransCLIP(TransductiveTrainer):
    """Gaussians with shared variances, a graph of nearest neighbours, and CLIP's labels; the whole set at once."""

    settings = {
        **TransductiveTrainer.settings,
        "LAMBDA": 1.0,
        "START": "images",  # or text
        "NEIGHBOURS": 3,
        "OUTER_STEPS": 10,
        "INNER_STEPS": 5,
    }
    limits = {
        "LAMBDA": (lambda value: 0 <= value < math.inf, "a weight, 0 or more"),
        "START": (lambda value: value in STARTS, f"one of {', '.join(STARTS)}"),
        "NEIGHBOURS": (lambda value: value >= 0, "a number of images, 0 or more"),
        "OUTER_STEPS": (lambda value: value >= 0, "a number of steps, 0 or more"),
        "INNER_STEPS": (lambda value: value >= 1, "a number of steps, 1 or more"),
    }

    def joint_logits(self, images: Images) -> Tensor:
        """Logarithms of the labels, `[N, C]`."""
        node = self.node
        steps = (node.NEIGHBOURS, node.OUTER_STEPS, node.INNER_STEPS)
        return transclip(images.features, images.logits, images.proxies, node.LAMBDA, node.START, *steps)
