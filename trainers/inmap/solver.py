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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.clip.memory import activation_budget
from dassl_clip.clip.rows import FeatureRows, Rows
from dassl_clip.results.errors import UserError

CHECK_EVERY = 5
STALL = 10
RESTART = 1e-3
WARM_UP = 50
PAIRS = 10
SAMPLE_ROWS = 8192
SAMPLE_ELEMENTS = 2**25
JOINT_CLASSES = 4096
BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}


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


class Pair(NamedTuple):
    """A step, the change of the tangent gradient along it, and their product; all 0 where the pair is of no use."""

    move: Tensor
    change: Tensor
    product: Tensor


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
            z = x @ scaled
            top, likeliest = z.max(dim=1, keepdim=True)
            z.sub_(top)
            q = z.exp().scatter_(1, likeliest, 0.0)
            rest = q.sum(dim=1, keepdim=True)  # of the other classes, relative to the likeliest
            total = p.sum(dim=1, keepdim=True)
            losses = (rest.log1p() * total).squeeze(1) - z.mul_(p).sum(dim=1)  # [n]
            value += losses.sum(dtype=torch.float64)
            q.mul_(total / (1 + rest)).sub_(p)
            q.scatter_(1, likeliest, (total - p.gather(1, likeliest)) - total * rest / (1 + rest))
            gradient.addmm_(x.T, q)
        return Point(value / self.images, gradient / (self.images * self.temperature))


class Curvature:
    """An approximate inverse of the objective's curvature on the spheres, from a sample of the rows.

    The Hessian of the mean cross-entropy is the mean over images of `(diag(q) - q q^T) x x^T / tau^2` (a Kronecker
    product); it is approximated by the product of the two means, `A [C, C]` and `S [E, E]`, as K-FAC does for layers
    (Martens and Grosse, ICML 2015). The spheres add `m_j = |grad_j|` to class `j`: at a solution the gradient of a
    column points along the column. With `A` scaled by `1 / sqrt(m_j m_k)`, two eigenvalue problems invert the sum
    exactly. Of more than `JOINT_CLASSES` classes only the diagonal of `A` is taken.

    Args:
        objective: The objective.
        proxy: Where the curvature is wanted, `[E, C]`.
        point: The objective there.
    """

    def __init__(self, objective: ProxyObjective, proxy: Tensor, point: Point):
        sample = min(SAMPLE_ROWS, max(1, SAMPLE_ELEMENTS // proxy.shape[1]))
        every = max(1, objective.images // sample)
        self.temperature = objective.temperature
        self.rows = objective.features[0 : objective.images : every].to(proxy)  # [n, E]
        values, self.feature_basis = _eigen(self.rows.T @ self.rows / len(self.rows))
        self.feature_values = values[:, None] / self.temperature**2
        self.update(proxy, point)

    def update(self, proxy: Tensor, point: Point) -> None:
        """Take the classes' part anew at another proxy."""
        lengths = point.gradient.norm(dim=0)
        self.scale: Tensor = torch.maximum(lengths, lengths.mean()).clamp_min(1e-20).rsqrt()  # [C]
        self.class_basis: Tensor | None = None
        q = (self.rows @ (proxy / self.temperature)).softmax(dim=1)  # [n, C]
        if len(lengths) > JOINT_CLASSES:
            self.class_values = (q - q.square()).sum(dim=0) / len(q) * self.scale.square()
            return
        between = (q.sum(dim=0).diag() - q.T @ q) / len(q)  # [C, C]
        self.class_values, self.class_basis = _eigen(between * self.scale * self.scale[:, None])

    def solve(self, x: Tensor) -> Tensor:
        """The inverse times `x`, `[E, C]`."""
        x = self.feature_basis.T @ (x * self.scale)
        if self.class_basis is None:
            return self.feature_basis @ (x / (self.feature_values * self.class_values + 1)) * self.scale
        x = x @ self.class_basis / (self.feature_values * self.class_values + 1)
        return self.feature_basis @ x @ self.class_basis.T * self.scale


def lower_bound(proxy: Tensor, point: Point) -> Tensor:
    """A number that the objective of no proxies with columns of length 1 (or shorter) goes below.

    `f` is convex in `W`, so `f(V) >= f(W) + <grad f(W), V - W>`, and over all `V` with columns of length at most 1 the
    right side is smallest at `f(W) - <grad, W> - sum_j |grad_j|` (the Frank-Wolfe gap).
    """
    gradient = point.gradient.double()
    lengths: Tensor = gradient.norm(dim=0)
    return point.value - (gradient * proxy).sum() - lengths.sum()


def authors_steps(objective: ProxyObjective, start: Tensor, steps: int = 2000, lr: float = 10.0) -> Solution:
    """The rule of the authors' program.

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
    """Limited-memory BFGS on the product of `C` spheres, preconditioned by `Curvature`.

    A step evaluates the objective once. If it fell enough (Armijo), the point moves, and the step and the change of the
    tangent gradient are kept as a pair; if not, the next step from the same point is shorter. A descent stops when the
    objective is within `tolerance`, relative, of `lower_bound` (then no solver can find anything better by more), or
    when `STALL` steps lowered it by no more than that, or after `steps`.

    Spheres are not convex: in few dimensions (or with few images) a column may want to be shorter than 1, and then
    other minima exist. A descent that ended by itself further than `RESTART`, relative, above the lower bound is
    followed by two more, from the solution with those columns turned round and from the authors' first `WARM_UP` steps;
    the lowest counts. Problems of CLIP's sizes are not seen to need it.

    Compared on synthetic CLIP-like problems (passes until the authors' result after 2000 is reached, for cold labels
    and tau 0.04): this 10 to 56; the same without preconditioner 34 to 77, with a diagonal one 19 to more than 150;
    truncated Newton with the same preconditioner 55 to more than 150, and with Hessians of a quarter of the rows it
    often fails. Accelerated projected gradient with restarts takes 34 to 66 steps of two passes to the authors' result
    after 300 only.
    """
    best = _descend(objective, start, steps, tolerance)
    far = best.objective - best.lower_bound > RESTART * best.objective
    if not (best.converged and far):
        return best
    inward = (best.proxy * objective(best.proxy).gradient).sum(dim=0) > 0
    turned = torch.where(inward, -best.proxy, best.proxy)
    passes = best.steps + 1 + WARM_UP
    for other in (turned, authors_steps(objective, start, WARM_UP).proxy):
        found = _descend(objective, other, steps, tolerance)
        passes += found.steps
        best = min(best, found, key=lambda solution: solution.objective)
    return best._replace(steps=passes)


def _descend(objective: ProxyObjective, start: Tensor, steps: int, tolerance: float) -> Solution:
    """One descent of `fast_steps`."""
    proxy, point = start, objective(start)
    slopes = _tangent(proxy, point.gradient)
    curvature = Curvature(objective, proxy, point)
    pairs: deque[Pair] = deque(maxlen=PAIRS)
    length, scale = torch.ones_like(point.value), torch.ones_like(point.value)
    noise = torch.finfo(start.dtype).eps / 4
    history, renew, step = [point.value], CHECK_EVERY, 0
    converged = bool(point.value - lower_bound(proxy, point) <= tolerance * point.value)  # nothing better exists
    while step < steps and not converged:
        step += 1
        direction, scale = _direction(proxy, slopes, curvature, pairs, scale)
        slope = _dot(slopes, direction)
        move = length.to(proxy.dtype) * direction
        trial = F.normalize(proxy + move, dim=0)
        new = objective(trial)
        new_slopes = _tangent(trial, new.gradient)
        lower = new.value <= point.value + 1e-4 * length * slope + noise * point.value
        moved, change = _tangent(trial, move), new_slopes - _tangent(trial, slopes)
        product = _dot(moved, change)
        use = lower & (product > 1e-10 * (_dot(moved, moved) * _dot(change, change)).sqrt())
        pairs.append(Pair(*(torch.where(use, x, 0) for x in (moved, change, product))))
        bend = new.value - point.value - length * slope  # of the parabola through both values and the slope
        shorter = length * (-0.5 * length * slope / bend).clamp(0.1, 0.5)
        length = torch.where(lower, 1.0, shorter)
        proxy, slopes = torch.where(lower, trial, proxy), torch.where(lower, new_slopes, slopes)
        point = Point(*(torch.where(lower, after, before) for after, before in zip(new, point)))
        history.append(point.value)
        if step % CHECK_EVERY == 0:
            done = point.value - lower_bound(proxy, point) <= tolerance * point.value
            if step >= STALL:
                done = done | (history[-1 - STALL] - point.value <= tolerance * point.value)
            converged = bool(done)
        if step == renew and not converged:
            curvature.update(proxy, point)
            renew *= 2
    return Solution(proxy, point.value.item(), lower_bound(proxy, point).item(), step + 1, converged)


def _direction(
    proxy: Tensor, slopes: Tensor, curvature: Curvature, pairs: deque[Pair], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The two-loop recursion, tangent to the spheres, no column longer than 1; and the scale of the curvature."""
    q, weights = slopes.clone(), []
    for pair in reversed(pairs):
        weight = _over(_dot(pair.move, q), pair.product)
        q.sub_(weight.to(q.dtype) * pair.change)
        weights.append(weight)
    if pairs:
        newest = pairs[-1]
        fit = _over(newest.product, _dot(newest.change, curvature.solve(newest.change)))
        scale = torch.where(fit > 0, fit, scale)
    q = scale.to(q.dtype) * curvature.solve(q)
    for pair, weight in zip(pairs, reversed(weights)):
        q.add_((weight - _over(_dot(pair.change, q), pair.product)).to(q.dtype) * pair.move)
    direction = -_tangent(proxy, q)
    return direction / direction.norm(dim=0).max().clamp_min(1.0), scale


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, 0 or more, and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype)


def _tangent(proxy: Tensor, vectors: Tensor) -> Tensor:
    """The parts of columns that stand at right angles to the proxies."""
    return torch.addcmul(vectors, proxy, (proxy * vectors).sum(dim=0), value=-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where `b` is 0."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0)
