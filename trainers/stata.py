"""StatA: TransCLIP's labels with a Gaussian of its own for each class, anchored to the text of the class.

Source: Zanella, Fuchs, De Vleeschouwer, Ben Ayed, "Realistic Test-Time Adaptation of Vision-Language Models" (StatA),
CVPR 2025, arXiv 2501.03729. As in TransCLIP, with variances `V_c [E]` of each class, and with a penalty: alpha times
the divergence of the class's Gaussian from the text's, whose mean is the proxy `t_c` and whose variances `V_0` are
those of all images about the texts under CLIP's labels. With `n_c` images in class `c` and
`beta_c = n_c / (n_c + alpha)`

    mu_c = normalise(beta_c normalise(mean_c) + (1 - beta_c) t_c)
    V_c  = beta_c var_c + (1 - beta_c) (V_0 + (t_c - mu_c)^2)

`mean_c` and `var_c` (about `mu_c`) are weighted by the labels. A class without images keeps the text's Gaussian, so few
classes in a batch do no harm. `n_c` counts the images whose likeliest class is `c`, or sums the labels (`BETA soft`).

The authors' program is under AGPL-3.0; this file is written from the formulas. Its defects, which are not here:
variances are divided by `N` once for each chunk of 2500 images, so they are wrong from 2501 images on; its batches and
streams are drawn by a generator without a seed; the number of classes is read off the labels of the test images; it
stops at one class and below 4 images; it runs on CUDA only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.neighbours import neighbour_graph
from dassl_clip.engine.transductive import Images, TransductiveTrainer

from .transclip import TransCLIP, class_means, renewed_labels, shared_variances

BETAS = ("hard", "soft")


def stata(
    features: Tensor,
    logits: Tensor,
    proxies: Tensor,
    alpha: float = 1.0,
    beta: str = "hard",
    weight: float = 1.0,
    neighbours: int = 3,
    outer_steps: int = 10,
    inner_steps: int = 5,
) -> Tensor:
    """Logarithms `[N, C]` of the labels.

    Args:
        features: `[N, E]`, of length 1.
        logits: `[N, C]`, whose softmax are CLIP's labels.
        proxies: `[C, E]`, of length 1, the means of the texts' Gaussians.
        alpha: Weight of the anchor, in images; positive.
        beta: "hard": an image counts for its likeliest class; "soft": for each by its label.
        weight: lambda, of CLIP's labels.
        neighbours: Of each image in the graph; `N - 1` where there are fewer others.
        outer_steps: Times that the Gaussians are renewed.
        inner_steps: Times that all labels are renewed in between.
    """
    graph, prior = neighbour_graph(features, neighbours), logits.log_softmax(dim=1)
    logs, labels, centre = prior, prior.exp(), features.mean(dim=0)
    centred = features - centre
    of_text = shared_variances(centred, labels, proxies - centre)  # [1, E]
    means, variances = proxies, of_text
    for step in range(outer_steps + 1):
        if step:
            counts = labels.sum(dim=0) if beta == "soft" else hard_counts(labels)
            share = (counts / (counts + alpha))[:, None]  # [C, 1]
            means = F.normalize(share * class_means(features, logs) + (1 - share) * proxies, dim=1)
            from_text = of_text + (proxies - means).square()
            variances = share * class_variances(centred, logs, means - centre) + (1 - share) * from_text
        logs = renewed_labels(centred, weight * prior, means - centre, variances, graph, labels, inner_steps)
        labels = logs.exp()
    return logs


def hard_counts(labels: Tensor) -> Tensor:
    """How many images have each class as their likeliest, `[C]`, from labels `[N, C]`."""
    return torch.zeros_like(labels[0]).index_add_(0, labels.argmax(dim=1), torch.ones_like(labels[:, 0]))


def class_variances(centred: Tensor, logs: Tensor, means: Tensor) -> Tensor:
    """Variances `[C, E]` of each class about its mean, weighted by labels, given as logarithms `[N, C]`.

    Args:
        centred: Features minus their mean, `[N, E]`.
        logs: Of the labels.
        means: Of the classes, minus the same, `[C, E]`.
    """
    weights = logs.softmax(dim=0).T
    return (weights @ centred.square() - 2 * means * (weights @ centred) + means.square()).clamp_min(0)


@TRAINER_REGISTRY.register()
class StatA(TransductiveTrainer):
    """A Gaussian per class, anchored to its text, a graph of nearest neighbours, and CLIP's labels; batch by batch."""

    settings = {
        **TransductiveTrainer.settings,
        "ALPHA": 1.0,
        "BETA": "hard",  # or soft
        "LAMBDA": 1.0,
        "NEIGHBOURS": 3,
        "OUTER_STEPS": 10,
        "INNER_STEPS": 5,
    }
    limits = {
        **{key: limit for key, limit in TransCLIP.limits.items() if key != "START"},
        "ALPHA": (lambda value: 0 < value < math.inf, "a number of images above 0"),
        "BETA": (lambda value: value in BETAS, f"one of {', '.join(BETAS)}"),
    }

    def joint_logits(self, images: Images) -> Tensor:
        """Logarithms of the labels, `[N, C]`."""
        node = self.node
        steps = (node.NEIGHBOURS, node.OUTER_STEPS, node.INNER_STEPS)
        return stata(images.features, images.logits, images.proxies, node.ALPHA, node.BETA, node.LAMBDA, *steps)
