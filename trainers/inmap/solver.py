"""Solvers of InMaP's proxy problem: the authors' gradient steps, and L-BFGS on a product of spheres.

Source: Qian et al., "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP" (InMaP), NeurIPS 2023,
arXiv 2310.19752. For features `x_i` and label distributions `p_i`, find the columns `w_j` of length 1 that minimise

    f(W) = 1/N sum_i CE(p_i, softmax(x_i W / tau)).

Shapes: `N` images, `E` joint embedding, `C` classes. Features and labels are read in row blocks, so no `N x C` matrix
needs to exist; all state of a solver is a few `[E, C]` matrices. Solvers decide with tensors and read a number on the
host only once in `CHECK_EVERY` steps.

`descend` also solves many problems at once (`ManyObjectives`): every tensor then has the problems in front, values
are `[D]` and proxies `[D, E, C]`, and each problem takes the steps that it would take alone.
"""

import math
from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .objective import Objective, Point, ProxyObjective

CHECK_EVERY = 5
STALL = 10
RESTART = 1e-3
WARM_UP = 50
PAIRS = 10
JOINT_CLASSES = 4096


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


class Pair(NamedTuple):
    """A step, the change of the tangent gradient along it, and their product; all 0 where the pair is of no use."""

    move: Tensor
    change: Tensor
    product: Tensor


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

    def __init__(self, objective: Objective, proxy: Tensor, point: Point):
        self.temperature = objective.temperature
        self.rows, self.weights = objective.sample(proxy)  # [n, E], [n, 1]
        values, self.feature_basis = _eigen(self.rows.mT @ (self.rows * self.weights))
        self.feature_values = values[..., None] / self.temperature**2
        self.update(proxy, point)

    def update(self, proxy: Tensor, point: Point) -> None:
        """Take the classes' part anew at another proxy."""
        lengths = point.gradient.norm(dim=-2, keepdim=True)
        mean = lengths.mean(dim=-1, keepdim=True)
        self.scale: Tensor = torch.maximum(lengths, mean).clamp_min(1e-20).rsqrt()  # [1, C]
        self.class_basis: Tensor | None = None
        q = (self.rows @ (proxy / self.temperature)).softmax(dim=-1)  # [n, C]
        weighted = q * self.weights
        if lengths.shape[-1] > JOINT_CLASSES:
            self.class_values = (weighted - weighted * q).sum(dim=-2, keepdim=True) * self.scale.square()
            return
        between = weighted.sum(dim=-2).diag_embed() - q.mT @ weighted  # [C, C]
        values, self.class_basis = _eigen(between * self.scale * self.scale.mT)
        self.class_values = values[..., None, :]  # [1, C]

    def solve(self, x: Tensor) -> Tensor:
        """The inverse times `x`, `[E, C]`."""
        x = self.feature_basis.mT @ (x * self.scale)
        if self.class_basis is None:
            return self.feature_basis @ (x / (self.feature_values * self.class_values + 1)) * self.scale
        x = x @ self.class_basis / (self.feature_values * self.class_values + 1)
        return self.feature_basis @ x @ self.class_basis.mT * self.scale


def lower_bound(proxy: Tensor, point: Point) -> Tensor:
    """A number that the objective of no proxies with columns of length 1 (or shorter) goes below.

    `f` is convex in `W`, so `f(V) >= f(W) + <grad f(W), V - W>`, and over all `V` with columns of length at most 1 the
    right side is smallest at `f(W) - <grad, W> - sum_j |grad_j|` (the Frank-Wolfe gap).
    """
    gradient = point.gradient.double()
    lengths: Tensor = gradient.norm(dim=-2)
    return point.value - (gradient * proxy).sum(dim=(-2, -1)) - lengths.sum(dim=-1)


def authors_steps(objective: ProxyObjective, start: Tensor, steps: int = 2000, lr: float = 10.0) -> Solution:
    """The rule of the authors' program.

    With `G = X^T (softmax(X W / tau) - P)`, the gradient of the sum over images times tau, a step is
    `W <- normalise(W - lr / (N tau) G)`: `lr` times the gradient of the mean. `lr` is halved before the step whenever
    the norm of `G` is larger than it was one step earlier. All steps are taken.
    """
    proxy = _authors_proxy(objective, start, steps, lr)
    end = objective(proxy)
    return Solution(proxy, end.value.item(), lower_bound(proxy, end).item(), steps, False)


def _authors_proxy(objective: Objective, start: Tensor, steps: int, lr: float = 10.0) -> Tensor:
    """Where `authors_steps` end, `[E, C]`; of one problem or of several."""
    proxy, rate = start, start.new_full((*start.shape[:-2], 1, 1), lr)
    previous = torch.full_like(rate, math.inf)
    for _ in range(steps):
        gradient = objective(proxy).gradient
        norm = gradient.norm(dim=(-2, -1), keepdim=True)
        rate = torch.where(norm > previous, rate / 2, rate)
        proxy, previous = F.normalize(proxy - rate * gradient, dim=-2), norm
    return proxy


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
    best = descend(objective, start, steps, tolerance)
    passes = int(best.steps)
    if best.converged and best.value - best.bound > RESTART * best.value:
        inward = (best.proxy * objective(best.proxy).gradient).sum(dim=0) > 0
        passes += 1 + WARM_UP
        for other in (torch.where(inward, -best.proxy, best.proxy), _authors_proxy(objective, start, WARM_UP)):
            found = descend(objective, other, steps, tolerance)
            passes += int(found.steps)
            best = min(best, found, key=lambda descent: float(descent.value))
    return Solution(best.proxy, best.value.item(), best.bound.item(), passes, bool(best.converged))


class Descent(NamedTuple):
    """Where a descent ended: `Solution` as tensors, of one problem or of `[D]`."""

    proxy: Tensor
    value: Tensor
    bound: Tensor
    steps: Tensor
    converged: Tensor


def descend(objective: Objective, start: Tensor, steps: int, tolerance: float) -> Descent:
    """One descent of `fast_steps`, of one problem or of all of `ManyObjectives` from `[D, E, C]`.

    A problem that has converged stays where it is while others go on.
    """
    proxy, point = start, objective(start)
    slopes = _tangent(proxy, point.gradient)
    curvature = Curvature(objective, proxy, point)
    pairs: deque[Pair] = deque(maxlen=PAIRS)
    length, scale = torch.ones_like(point.value), torch.ones_like(point.value)
    noise = torch.finfo(start.dtype).eps / 4
    history, renew, step = [point.value], CHECK_EVERY, 0
    done = point.value - lower_bound(proxy, point) <= tolerance * point.value  # nothing better exists
    taken, ended = torch.zeros_like(point.value), bool(done.all())
    while step < steps and not ended:
        step += 1
        taken = taken + ~done
        direction, scale = _direction(proxy, slopes, curvature, pairs, scale)
        slope = _dot(slopes, direction)
        move = _beside(length, proxy).to(proxy.dtype) * direction
        trial = F.normalize(proxy + move, dim=-2)
        new = objective(trial)
        new_slopes = _tangent(trial, new.gradient)
        lower = ~done & (new.value <= point.value + 1e-4 * length * slope + noise * point.value)
        moved, change = _tangent(trial, move), new_slopes - _tangent(trial, slopes)
        product = _dot(moved, change)
        use = lower & (product > 1e-10 * (_dot(moved, moved) * _dot(change, change)).sqrt())
        pairs.append(Pair(*(torch.where(_beside(use, x), x, 0) for x in (moved, change, product))))
        bend = new.value - point.value - length * slope  # of the parabola through both values and the slope
        shorter = length * (-0.5 * length * slope / bend).clamp(0.1, 0.5)
        length = torch.where(lower, 1.0, shorter)
        at = _beside(lower, proxy)
        proxy, slopes = torch.where(at, trial, proxy), torch.where(at, new_slopes, slopes)
        point = Point(torch.where(lower, new.value, point.value), torch.where(at, new.gradient, point.gradient))
        history.append(point.value)
        if step % CHECK_EVERY == 0:
            done = done | (point.value - lower_bound(proxy, point) <= tolerance * point.value)
            if step >= STALL:
                done = done | (history[-1 - STALL] - point.value <= tolerance * point.value)
            ended = bool(done.all())
        if step == renew and not ended:
            curvature.update(proxy, point)
            renew *= 2
    return Descent(proxy, point.value, lower_bound(proxy, point), taken + 1, done)


def _direction(
    proxy: Tensor, slopes: Tensor, curvature: Curvature, pairs: deque[Pair], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The two-loop recursion, tangent to the spheres, no column longer than 1; and the scale of the curvature."""
    q, weights = slopes.clone(), []
    for pair in reversed(pairs):
        weight = _over(_dot(pair.move, q), pair.product)
        q.sub_(_beside(weight, q).to(q.dtype) * pair.change)
        weights.append(weight)
    if pairs:
        newest = pairs[-1]
        fit = _over(newest.product, _dot(newest.change, curvature.solve(newest.change)))
        scale = torch.where(fit > 0, fit, scale)
    q = _beside(scale, q).to(q.dtype) * curvature.solve(q)
    for pair, weight in zip(pairs, reversed(weights)):
        q.add_(_beside(weight - _over(_dot(pair.change, q), pair.product), q).to(q.dtype) * pair.move)
    direction = -_tangent(proxy, q)
    return direction / direction.norm(dim=-2, keepdim=True).amax(dim=-1, keepdim=True).clamp_min(1.0), scale


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, 0 or more, and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype)


def _tangent(proxy: Tensor, vectors: Tensor) -> Tensor:
    """The parts of columns that stand at right angles to the proxies."""
    return torch.addcmul(vectors, proxy, (proxy * vectors).sum(dim=-2, keepdim=True), value=-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1), dtype=torch.float64)


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """One value of each problem, in a shape that goes with `x` of all problems."""
    return values.reshape(values.shape + (1,) * (x.dim() - values.dim()))


def _over(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where `b` is 0."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0)
