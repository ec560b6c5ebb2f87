"""Solvers of InMaP's proxy problem: the authors' gradient steps, and L-BFGS on a product of spheres.

Source: Qian et al., "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP" (InMaP), NeurIPS 2023,
arXiv 2310.19752. For features `x_i` and label distributions `p_i`, find the columns `w_j` of length 1 that minimise

    f(W) = 1/N sum_i CE(p_i, softmax(x_i W / tau)).

Shapes: `N` images, `E` joint embedding, `C` classes. Features and labels are read in row blocks, so no `N x C` matrix
needs to exist; all state of a solver is a few `[E, C]` matrices. Solvers decide with tensors and read a number on the
host only once in `CHECK_EVERY` steps.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHECK_EVERY = 10
PAIRS = 10
BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}


class Rows(Protocol):
    """`[N, C]` numbers that may be formed when they are read: a tensor, or a class of `inmap`."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


class Solution(NamedTuple):
    """What a solver found."""

    proxy: Tensor
    """`[E, C]`, columns of length 1."""
    objective: float
    """`f(proxy)`."""
    lower_bound: float
    """No proxies with columns of length 1 have a lower objective than this; see `ProxyObjective.lower_bound`."""
    steps: int
    """Passes over the features, each giving the objective and its gradient."""
    converged: bool
    """The stopping rule ended the run, not the limit of steps."""


class Point(NamedTuple):
    """The objective at one set of proxies."""

    value: Tensor
    """`f`, a float64 scalar."""
    gradient: Tensor
    """`[E, C]`, of the mean over images, in the space around the spheres."""
    spread: Tensor
    """`[C]`, the mean of `q (1 - q)` for the predicted probabilities `q`: the scale of the curvature of a class."""


def row_blocks(n: int, columns: int, device: torch.device, block_rows: int | str | None) -> Iterator[slice]:
    """Slices that cover `n` rows; "auto" bounds the numbers in a block, None takes all rows at once."""
    if block_rows == "auto":
        block_rows = max(1, BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS["cuda"]) // columns)
    elif block_rows is None:
        block_rows = max(1, n)
    elif isinstance(block_rows, bool) or not isinstance(block_rows, int) or block_rows < 1:
        raise ValueError(f'block_rows is a positive number of rows, "auto" or None (all rows), got {block_rows!r}')
    return (slice(start, min(start + block_rows, n)) for start in range(0, n, block_rows))


class ProxyObjective:
    """The objective and its gradient, summed over row blocks.

    Every term of the sum is non-negative (`-log q` of each class, weighted by its label), and the difference `q - p` of
    the likeliest class is formed from the rest of the row. Thus objectives near 0 and the gradients of images that are
    almost sure keep their relative accuracy in float32.

    Args:
        features: `[N, E]`.
        labels: `[N, C]`, rows that sum to 1.
        temperature: `tau`.
        block_rows: Rows at once; "auto" bounds the memory, None takes all.
    """

    def __init__(self, features: Tensor, labels: Rows, temperature: float, block_rows: int | str | None = "auto"):
        self.features, self.labels, self.temperature = features, labels, temperature
        self.blocks = list(row_blocks(*labels.shape, features.device, block_rows))

    def __call__(self, proxy: Tensor) -> Point:
        """The objective at `proxy`, `[E, C]`."""
        n = len(self.features)
        value = torch.zeros((), dtype=torch.float64, device=proxy.device)
        gradient, spread = torch.zeros_like(proxy), torch.zeros_like(proxy[0])
        for rows in self.blocks:
            x, p = self.features[rows], self.labels[rows].to(proxy)  # [n, E], [n, C]
            z = (x @ proxy).div_(self.temperature)
            top, likeliest = z.max(dim=1, keepdim=True)
            z.sub_(top)
            q = z.exp().scatter_(1, likeliest, 0.0)
            rest = q.sum(dim=1, keepdim=True)  # e^z of all other classes, relative to the likeliest
            value += z.neg_().add_(rest.log1p()).mul_(p).sum(dim=1).sum(dtype=torch.float64)
            q.div_(1 + rest)
            spread += torch.addcmul(q, q, q, value=-1, out=z).scatter_(1, likeliest, rest / (1 + rest).square()).sum(0)
            q.sub_(p).scatter_(1, likeliest, (1 - p.gather(1, likeliest)) - rest / (1 + rest))
            gradient.addmm_(x.T, q)
        return Point(value / n, gradient / (n * self.temperature), spread / n)


def lower_bound(proxy: Tensor, point: Point) -> Tensor:
    """A bound that the objective of no proxies of length 1 (or shorter) goes below.

    `f` is convex in `W`, so `f(V) >= f(W) + <grad f(W), V - W>`, and over all `V` with columns of length at most 1 the
    right side is smallest at `f(W) - <grad, W> - sum_j |grad_j|` (the Frank-Wolfe gap).
    """
    gradient = point.gradient.double()
    return point.value - (gradient * proxy).sum() - gradient.norm(dim=0).sum()


def authors_steps(objective: ProxyObjective, start: Tensor, steps: int = 2000, lr: float = 10.0) -> Solution:
    """The released program's rule.

    With `G = X^T (softmax(X W / tau) - P)`, the gradient of the sum over images times tau, a step is
    `W <- normalise(W - lr / (N tau) G)`: `lr` times the gradient of the mean. `lr` is halved before the step whenever
    the norm of `G` is larger than it was one step earlier. All steps are taken.
    """
    proxy, rate = start, start.new_tensor(lr)
    previous = start.new_tensor(math.inf)
    for _ in range(steps):
        gradient = objective(proxy).gradient
        norm = gradient.norm()
        rate = torch.where(norm > previous, rate / 2, rate)
        proxy, previous = F.normalize(proxy - rate * gradient, dim=0), norm
    end = objective(proxy)
    return Solution(proxy, end.value.item(), lower_bound(proxy, end).item(), steps, False)


def fast_steps(objective: ProxyObjective, start: Tensor, steps: int = 500, tolerance: float = 1e-6) -> Solution:
    """Limited-memory BFGS on the product of `C` spheres."""
    proxy, point = start, objective(start)
    slope_at = _tangent(proxy, point.gradient)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=PAIRS)
    length = point.value.new_tensor(1.0)
    noise = 4 * torch.finfo(start.dtype).eps
    checked, done, step = point.value, False, 0
    for step in range(1, steps + 1):
        direction = _direction(proxy, point, slope_at, pairs)
        slope = _dot(slope_at, direction)
        trial = F.normalize(proxy + length.to(proxy.dtype) * direction, dim=0)
        new = objective(trial)
        slope_new = _tangent(trial, new.gradient)
        better = new.value <= point.value + 1e-4 * length * slope + noise * point.value
        moved = _tangent(trial, length.to(proxy.dtype) * direction)
        change = slope_new - _tangent(trial, slope_at)
        curvature = _dot(moved, change)
        usable = better & (curvature > 1e-10 * (_dot(moved, moved) * _dot(change, change)).sqrt())
        pairs.append((torch.where(usable, moved, 0), torch.where(usable, change, 0), torch.where(usable, curvature, 0)))
        bend = new.value - point.value - length * slope  # of the parabola through both values and the slope
        shrink = (-0.5 * length * slope / bend).clamp(0.1, 0.5)
        length = torch.where(better, 1.0, length * shrink)
        proxy, slope_at = torch.where(better, trial, proxy), torch.where(better, slope_new, slope_at)
        point = Point(*(torch.where(better, a, b) for a, b in zip(new, point)))
        if step % CHECK_EVERY == 0:
            limit = tolerance * point.value
            sure = point.value - lower_bound(proxy, point) <= limit
            stalled = checked - point.value <= 0.1 * limit
            done = bool(sure | stalled)
            checked = point.value
            if done:
                break
    return Solution(proxy, point.value.item(), lower_bound(proxy, point).item(), step + 1, done)


def _direction(proxy: Tensor, point: Point, slope_at: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion, from a diagonal first guess of the inverse curvature; tangent to the spheres."""
    q, weights = slope_at.clone(), []
    for moved, change, curvature in reversed(pairs):
        weight = _over(_dot(moved, q), curvature)
        q.sub_(weight.to(q.dtype) * change)
        weights.append(weight)
    q.div_(point.gradient.norm(dim=0).clamp_min(torch.finfo(q.dtype).tiny))
    for (moved, change, curvature), weight in zip(pairs, reversed(weights)):
        q.add_((weight - _over(_dot(change, q), curvature)).to(q.dtype) * moved)
    direction = -_tangent(proxy, q)
    return direction / direction.norm(dim=0).max().clamp_min(1.0)


def _tangent(proxy: Tensor, vectors: Tensor) -> Tensor:
    """The parts of columns that stand at right angles to the proxies."""
    return torch.addcmul(vectors, proxy, (proxy * vectors).sum(dim=0), value=-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where `b` is 0."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0)
