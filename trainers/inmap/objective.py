"""The objective of InMaP's proxy problem and its gradient, of one set of images or of many small ones.

The problem and its source stand in `solver.py`; shapes as there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dassl_clip.clip.memory import activation_budget
from dassl_clip.clip.rows import FeatureRows, Rows
from dassl_clip.results.errors import UserError

SAMPLE_ROWS = 8192
SAMPLE_ELEMENTS = 2**25
BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}


class Point(NamedTuple):
    """The objective at one set of proxies."""

    value: Tensor
    """`f`, a float64 scalar; `[D]` of several problems."""
    gradient: Tensor
    """`[E, C]`, of the mean over images, in the space around the spheres; `[D, E, C]`."""


def row_blocks(n: int, columns: int, device: torch.device, block_rows: int | str | None) -> list[slice]:
    """Slices that cover `n` rows; "auto" bounds the numbers in a block, None takes all rows at once."""
    if block_rows == "auto":
        block_rows = max(1, BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS["cuda"]) // columns)
    elif block_rows is None:
        block_rows = max(1, n)
    elif isinstance(block_rows, bool) or not isinstance(block_rows, int) or block_rows < 1:
        raise UserError(f'block_rows is a positive number of rows, "auto" or None (all rows), got {block_rows!r}')
    return [slice(start, min(start + block_rows, n)) for start in range(0, n, block_rows)]


def formed_once(rows: Rows, blocks: list[slice], device: torch.device, block_rows: int | str | None) -> Rows:
    """Rows `[N, C]` that are read in every step: a tensor of them where that may be kept, else as they are.

    It may where the device decides what is taken at once (`block_rows` "auto") and holds them in a quarter of its
    memory. They are formed in the blocks in which they are read, so that their digits do not depend on it.

    Args:
        rows: A tensor, or rows that are formed when they are read.
        blocks: Slices that cover them.
        device: Where they arrive.
        block_rows: As in `row_blocks`.
    """
    size = rows.shape.numel() * torch.float64.itemsize
    if isinstance(rows, Tensor) or block_rows != "auto" or size > activation_budget(device):
        return rows
    first = rows[blocks[0]]
    kept = first.new_empty(rows.shape)
    kept[blocks[0]] = first
    for block in blocks[1:]:
        kept[block] = rows[block]
    return kept


class ProxyObjective:
    """The objective and its gradient, summed over row blocks.

    Relative to a row's largest logit, both terms of an image's cross-entropy are 0 or more, and the difference of
    probability and label of the likeliest class is formed from the rest of the row. Thus objectives near 0 and the
    gradients of images that are almost sure keep their relative accuracy in float32.

    Args:
        features: `[N, E]`; read block by block, each in the precision of the proxies.
        labels: `[N, C]`, rows that sum to 1; if they are formed when they are read, they are so once (`formed_once`).
        temperature: `tau`.
        block_rows: Rows at once; "auto" bounds the memory, None takes all.

    Attributes:
        images: `N`.
        blocks: The row blocks.
    """

    def __init__(self, features: FeatureRows, labels: Rows, temperature: float, block_rows: int | str | None = "auto"):
        self.features, self.temperature, self.images = features, temperature, labels.shape[0]
        self.blocks = row_blocks(*labels.shape, features.device, block_rows)
        self.labels = formed_once(labels, self.blocks, features.device, block_rows)

    def __call__(self, proxy: Tensor) -> Point:
        """The objective at `proxy`, `[E, C]`."""
        scaled = proxy / self.temperature
        value = torch.zeros((), dtype=torch.float64, device=proxy.device)
        gradient = torch.zeros_like(proxy)
        for rows in self.blocks:
            x, p = self.features[rows].to(proxy), self.labels[rows].to(proxy)  # [n, E], [n, C]
            losses, residuals = cross_entropy(x @ scaled, p)
            value += losses.sum(dtype=torch.float64)
            gradient.addmm_(x.T, residuals)
        return Point(value / self.images, gradient / (self.images * self.temperature))

    def sample(self, proxy: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the features `[n, E]`, and the weight of each in a mean over them, `[n, 1]`."""
        most = min(SAMPLE_ROWS, max(1, SAMPLE_ELEMENTS // proxy.shape[-1]))
        rows = self.features[0 : self.images : max(1, self.images // most)].to(proxy)
        return rows, rows.new_full((len(rows), 1), 1 / len(rows))


class ManyObjectives:
    """The objectives of several problems with few images each, `ProxyObjective` of each.

    Args:
        features: `[D, N, E]`; rows of 0 fill up problems with fewer images.
        labels: `[D, N, C]`, rows that sum to 1, or to 0 where an image is missing.
        temperature: `tau`.
    """

    def __init__(self, features: Tensor, labels: Tensor, temperature: float):
        self.features, self.labels, self.temperature = features, labels, temperature
        self.present = labels.sum(dim=-1, keepdim=True)
        self.images = self.present.sum(dim=-2, keepdim=True)  # [D, 1, 1]

    def __call__(self, proxy: Tensor) -> Point:
        """The objectives at `proxy`, `[D, E, C]`."""
        losses, residuals = cross_entropy(self.features @ (proxy / self.temperature), self.labels)
        gradient = self.features.mT @ residuals
        value = losses.sum(dim=-1, dtype=torch.float64) / self.images[:, 0, 0]
        return Point(value, gradient / (self.images * self.temperature))

    def sample(self, proxy: Tensor) -> tuple[Tensor, Tensor]:
        """All features `[D, N, E]`, and the weight of each in a mean over them, `[D, N, 1]`."""
        return self.features, self.present / self.images


def cross_entropy(z: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of labels `p` and `softmax(z)`, both `[..., n, C]`, and its gradient by `z`, which is changed.

    Returns:
        `[..., n]` and `[..., n, C]`.
    """
    top, likeliest = z.max(dim=-1, keepdim=True)
    z.sub_(top)
    q = z.exp().scatter_(-1, likeliest, 0.0)
    rest = q.sum(dim=-1, keepdim=True)  # of the other classes, relative to the likeliest
    total = p.sum(dim=-1, keepdim=True)
    losses = (rest.log1p() * total).squeeze(-1) - z.mul_(p).sum(dim=-1)
    q.mul_(total / (1 + rest)).sub_(p)
    q.scatter_(-1, likeliest, (total - p.gather(-1, likeliest)) - total * rest / (1 + rest))
    return losses, q


Objective = ProxyObjective | ManyObjectives
