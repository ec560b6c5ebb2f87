"""Nearest neighbours by cosine and the graphs that they make, without a matrix of all pairs.

Shapes: `N` images, `E` joint embedding, `K` neighbours, `M` edges.
"""

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**24  # cosines that are formed at once


@torch.no_grad()
def nearest_neighbours(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The images with the largest cosines, for each image, itself left out.

    Args:
        features: `[N, E]`, of length 1.
        neighbours: How many; `K` is this number, or `N - 1` where there are fewer others.

    Returns:
        Cosines and indices, both `[N, K]`, the nearest first.
    """
    count = len(features)
    kept = min(neighbours, count - 1)
    cosines, index = features.new_empty(count, kept), torch.empty(count, kept, dtype=torch.long, device=features.device)
    rows = max(1, BLOCK_ELEMENTS // count)
    for start in range(0, count, rows):
        block = features[start : start + rows] @ features.T  # [n, N]
        block.diagonal(start).fill_(-torch.inf)
        cosines[start : start + rows], index[start : start + rows] = block.topk(kept, dim=1)
    return cosines, index


def symmetric_graph(sources: Tensor, targets: Tensor, weights: Tensor, nodes: int) -> Tensor:
    """The sparse matrix `W + W^T`, `[nodes, nodes]`, of directed edges; `sources`, `targets` and `weights` are `[M]`.

    An edge that is there in both directions has the sum of both weights.
    """
    index = torch.stack([torch.cat([sources, targets]), torch.cat([targets, sources])])
    return torch.sparse_coo_tensor(index, weights.repeat(2), (nodes, nodes), check_invariants=False).coalesce()


def neighbour_graph(features: Tensor, neighbours: int) -> Tensor:
    """The sparse matrix `W + W^T`, `[N, N]`, where row `i` of `W` holds the cosines of image `i`'s neighbours."""
    cosines, index = nearest_neighbours(features, neighbours)
    sources = torch.arange(len(features), device=features.device).repeat_interleave(index.shape[1])
    return symmetric_graph(sources, index.flatten(), cosines.flatten(), len(features))
