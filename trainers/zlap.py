"""ZLaP: CLIP's class names as labelled nodes of a graph of images, and their labels propagated through it.

Source: Stojnić, Kalantidis, Tolias, "Label Propagation for Zero-shot Classification with Vision-Language Models"
(ZLaP), CVPR 2024, arXiv 2404.04072, the transductive variant. Nodes are `C` texts and `N` images. An image has edges
to its `k` nearest images, of which it is one itself, with weights `max(cos, 0)`, and to its `k` nearest texts, with
weights `max(cos, 0)^gamma`, since cosines of images and texts are smaller. With `W <- W + W^T` and
`S = D^-1/2 W D^-1/2` the scores are the images' rows of `(I - alpha S)^-1 E`; each column of `E` is one at the node of
one text, else zero.

The eigenvalues of `alpha S` lie between -alpha and alpha, so Chebyshev's iteration solves the system to a relative
error that is known beforehand, by a fixed number of sparse products: no matrix of all pairs, nothing read on the host.

The authors' program (MIT) stops its conjugate gradients at 1e-6 of right-hand sides of length 1, which is not small
beside scores near cos^gamma (1e-3 for CLIP): where cosines are small its predictions are decided by this tolerance. It
needs a GPU, for cupy and faiss. An image without a path to a text (its cosines with the texts are not positive, nor
are those with others) has zeros for scores there; here it keeps its own logits.
"""

import math

import torch
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.neighbours import nearest_neighbours, symmetric_graph
from dassl_clip.engine.transductive import Images, TransductiveTrainer

RELATIVE_ERROR = 1e-12


def zlap(features: Tensor, cosines: Tensor, neighbours: int = 5, gamma: float = 5.0, alpha: float = 0.3) -> Tensor:
    """Scores `[N, C]`, 0 or more, float64: rows do not sum to 1, and an image without any path to a text has zeros.

    Args:
        features: `[N, E]`, of length 1.
        cosines: With the class proxies, `[N, C]`.
        neighbours: `k`, 1 or more: edges of an image to `k - 1` others and to `k` texts, as far as there are so many.
        gamma: Exponent of the weights of edges to texts.
        alpha: How far labels spread, above 0 and below 1.
    """
    images, classes = cosines.shape
    device, nodes = features.device, classes + images  # texts first
    between, others = nearest_neighbours(features.double(), neighbours - 1)
    to_texts, texts = cosines.double().topk(min(neighbours, classes), dim=1)
    numbers = torch.arange(classes, nodes, device=device)
    sources = torch.cat([numbers.repeat_interleave(others.shape[1]), numbers.repeat_interleave(texts.shape[1])])
    targets = torch.cat([others.flatten() + classes, texts.flatten()])
    weights = torch.cat([between.clamp_min(0).flatten(), to_texts.clamp_min(0).pow(gamma).flatten()])
    graph = symmetric_graph(sources, targets, weights, nodes)
    degrees = torch.zeros(nodes, dtype=torch.float64, device=device)
    degrees.index_add_(0, sources, weights).index_add_(0, targets, weights)
    roots = torch.where(degrees > 0, degrees.rsqrt(), 0.0)[:, None]
    labelled = torch.eye(nodes, classes, dtype=torch.float64, device=device)

    # Golub and Varga, "Chebyshev semi-iterative methods", 1961: the error falls by `rate` in each step.
    rate = alpha / (1 + math.sqrt(1 - alpha**2))
    before, scores, relax = torch.zeros_like(labelled), labelled, 2.0
    for _ in range(math.ceil(math.log(RELATIVE_ERROR / 2) / math.log(rate))):
        relax = 1 / (1 - alpha**2 * relax / 4)
        spread = alpha * roots * torch.sparse.mm(graph, roots * scores) + labelled
        before, scores = scores, relax * (spread - before) + before
    return scores[classes:].clamp_min(0)


@TRAINER_REGISTRY.register()
class ZLaP(TransductiveTrainer):
    """Labels of the texts, propagated through a graph of nearest neighbours; the whole set at once."""

    settings = {
        **TransductiveTrainer.settings,
        "K": 5,
        "GAMMA": 5.0,
        "ALPHA": 0.3,
    }
    limits = {
        "K": (lambda value: value >= 1, "a number of neighbours, 1 or more"),
        "GAMMA": (lambda value: 0 < value < math.inf, "an exponent above 0"),
        "ALPHA": (lambda value: 0 < value < 1, "a number between 0 and 1, both excluded"),
    }

    def joint_logits(self, images: Images) -> Tensor:
        """Logarithms `[N, C]` of the scores as shares; the image's own logits where it has no score."""
        node = self.node
        scores = zlap(images.features, images.logits / images.scale, node.K, node.GAMMA, node.ALPHA)
        total = scores.sum(dim=1, keepdim=True)
        smallest = torch.finfo(images.logits.dtype).tiny
        shares = (scores / total.clamp_min(torch.finfo(scores.dtype).tiny)).clamp_min(smallest)
        return torch.where(total > 0, shares.log().to(images.logits), images.logits)
