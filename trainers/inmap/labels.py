"""InMaP: pseudo labels of unlabeled images, refined to a class marginal, and a vision proxy for each class.

Source: Qian et al., "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP" (InMaP), NeurIPS 2023,
arXiv 2310.19752: pseudo labels from text proxies, their refinement by Sinkhorn's iterations and the vision proxies.
Pure functions of tensors; no argument is changed.

Three deviations from the authors' program: the caller's pseudo labels are not overwritten; Sinkhorn works on
logarithms, so a class without mass gives no NaN; nothing is read on the host inside a step.

Shapes: `N` images, `E` joint embedding, `C` classes. A score is a cosine, `features @ text_proxy`. Sinkhorn scales rows
and columns of `softmax(scores / tau)`, so after its last row step the labels are `softmax(scores / tau + potentials)`
with one number per class. That is why neither scores nor labels have to exist as a whole: `Cosines` and `PseudoLabels`
form the rows that are asked for, and stand wherever a tensor `[N, C]` does; where the device's memory allows, what is
read in every step is formed once. Features are read in the same row blocks: they may be memory-mapped, in half
precision, or come from a disk (`FeatureRows`), and are never copied as a whole.

    scores = Cosines(features, text_proxy)
    theta = choose(set_logits(scores, temperature), text_proxy.T @ text_proxy).theta  # `marginal.py`; or, as the paper:
    theta = sinkhorn_potentials(scores, temperature)
    labels = PseudoLabels(scores, temperature, theta, threshold=0.6)
    proxy = learn_vision_proxy(features, text_proxy, labels, 2 * temperature)  # the paper: 4
"""

import math
from typing import Any

import torch
from torch import Tensor

from dassl_clip.clip.losses import at_least_float32
from dassl_clip.clip.rows import Cosines, FeatureRows, Rows
from dassl_clip.results.errors import UserError

from .marginal import SetLogits
from .objective import ProxyObjective, formed_once, row_blocks
from .solver import Solution, authors_steps, fast_steps

SOLVERS = {"fast": fast_steps, "authors": authors_steps}


class Scaled:
    """Scores over a temperature, `[N, C]`, each row relative to its largest; formed for the rows that are asked for.

    Args:
        scores: `[N, C]`, a tensor or `Cosines`.
        temperature: Positive.

    Raises:
        UserError: The temperature is not positive.
    """

    def __init__(self, scores: Tensor | Cosines, temperature: float):
        _check_temperature(temperature)
        self.scores, self.temperature, self.shape = scores, temperature, scores.shape

    def __getitem__(self, rows: slice) -> Tensor:
        return _logits(self.scores[rows], self.temperature)


class PseudoLabels:
    """Label distributions of images, formed for the rows that are asked for.

    Args:
        scores: `[N, C]`, a tensor or `Cosines`.
        temperature: `tau_t`; positive.
        potentials: `[C]` of `sinkhorn_potentials`; None gives plain pseudo labels.
        threshold: Rows whose largest value exceeds it are one-hot (`harden`); None leaves all rows as they are.

    Raises:
        UserError: The temperature is not positive, or the potentials are not one number per class.
    """

    def __init__(
        self,
        scores: Tensor | Cosines,
        temperature: float,
        potentials: Tensor | None = None,
        threshold: float | None = 0.6,
    ):
        _check_temperature(temperature)
        if potentials is not None and potentials.shape != scores.shape[1:]:
            raise UserError(f"potentials are one number for each of {scores.shape[1]} classes, got {potentials.shape}")
        self.scores, self.temperature, self.potentials, self.threshold = scores, temperature, potentials, threshold
        self.shape, self.device = scores.shape, scores.device

    def __len__(self) -> int:
        return self.shape[0]

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        logits = _logits(self.scores[rows], self.temperature)
        if self.potentials is not None:
            logits.add_(self.potentials.to(logits))
        labels = logits.softmax(dim=1)
        return labels if self.threshold is None else harden(labels, self.threshold)


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, gamma: float = 0.0, iterations: int = 20) -> Tensor:
    """Pseudo labels refined to a class marginal.

    `P = softmax(scores / temperature) / N`; in each iteration columns are scaled to the class marginal and then rows to
    1/N; at the end rows sum to 1. Computed with logarithms: no value underflows to a class without mass.

    Args:
        scores: Cosines of images and text proxies, `[N, C]`.
        temperature: `tau_t`, positive.
        gamma: 0 for a uniform marginal; otherwise the marginal is proportional to `(sum of P over images)^gamma`.
        iterations: Times that columns and rows are scaled; 0 gives the plain pseudo labels.

    Returns:
        `[N, C]`, rows sum to 1; float32, or float64 for float64 scores.

    Raises:
        UserError: The scores are not finite numbers `[N, C]`, the temperature is not positive, or the number of
            iterations is negative.
    """
    potentials = sinkhorn_potentials(scores, temperature, gamma, iterations, block_rows=None)
    return PseudoLabels(scores, temperature, potentials, threshold=None)[:]


@torch.no_grad()
def sinkhorn_potentials(
    scores: Tensor | Cosines,
    temperature: float,
    gamma: float = 0.0,
    iterations: int = 20,
    block_rows: int | str | None = "auto",
) -> Tensor:
    """The `C` numbers, float64, that describe Sinkhorn's labels: `softmax(scores / temperature + potentials)`.

    Args:
        scores: `[N, C]`, a tensor or `Cosines`; read once for each iteration, formed once (`formed_once`).
        temperature: As in `sinkhorn`, and so `gamma` and `iterations`.
        block_rows: Rows at once; "auto" fits the device's memory, a number bounds it strictly, None takes all.

    Raises:
        UserError: As `sinkhorn`.
    """
    _check_temperature(temperature)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise UserError(f"iterations is a number of iterations, 0 or more, got {iterations!r}")
    if not math.isfinite(gamma):
        raise UserError(f"gamma is a finite exponent of the class marginal (0: uniform), got {gamma}")
    _check_shape(scores)
    blocks = row_blocks(*scores.shape, scores.device, block_rows)
    formed = formed_once(scores, blocks, scores.device, block_rows)
    _check_scores(formed, blocks, temperature)
    potentials = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    target = torch.full_like(potentials, -math.log(scores.shape[1]))
    for iteration in range(iterations):
        mass = torch.full_like(potentials, -math.inf)  # logs of the columns' sums
        for rows in blocks:
            logits = _logits(formed[rows], temperature)
            logs = logits.add_(potentials.to(logits)).log_softmax(dim=1)
            top = logs.amax(dim=0)
            mass = torch.logaddexp(mass, (top + logs.sub_(top).exp_().sum(dim=0).log()).double())
        if iteration == 0 and gamma != 0:
            target = (gamma * mass).log_softmax(dim=0)
        potentials = potentials + target - (mass - math.log(scores.shape[0]))
    return potentials


@torch.no_grad()
def set_logits(scores: Tensor | Cosines, temperature: float, block_rows: int | str | None = "auto") -> SetLogits:
    """The logits of a set of images, for the choice of class sizes (`marginal.choose`).

    Args:
        scores: `[N, C]`, a tensor or `Cosines`; formed once (`formed_once`).
        temperature: `tau_t`, positive.
        block_rows: As in `sinkhorn_potentials`.

    Raises:
        UserError: As `sinkhorn_potentials`.
    """
    _check_shape(scores)
    blocks = row_blocks(*scores.shape, scores.device, block_rows)
    logits = formed_once(Scaled(scores, temperature), blocks, scores.device, block_rows)
    _check_scores(logits, blocks, 1.0)
    return SetLogits(logits, blocks)


def harden(labels: Tensor, threshold: float = 0.6) -> Tensor:
    """Make rows one-hot whose largest value exceeds the threshold.

    Args:
        labels: `[N, C]`.
        threshold: `alpha`; a row whose largest value equals it stays as it is.

    Returns:
        `[N, C]`, a new tensor. Of equal largest values the first counts.

    Raises:
        UserError: The labels are not `[N, C]`, or the threshold is not a number.
    """
    if labels.dim() != 2 or labels.shape[1] == 0:
        raise UserError(f"labels have one row per image and one column per class, [N, C], got {tuple(labels.shape)}")
    if math.isnan(threshold):
        raise UserError(f"the threshold is compared with the largest value of a row, got {threshold}")
    top = labels.amax(dim=1, keepdim=True)
    first = torch.zeros_like(labels).scatter_(1, labels.argmax(dim=1, keepdim=True), 1.0)
    return torch.where(top > threshold, first, labels)


def learn_vision_proxy(
    features: FeatureRows, text_proxy: Tensor, labels: Rows, temperature: float, *args: Any, **options: Any
) -> Tensor:
    """The vision proxy `[E, C]` that `solve_vision_proxy` finds; arguments and errors are the same."""
    return solve_vision_proxy(features, text_proxy, labels, temperature, *args, **options).proxy


@torch.no_grad()
def solve_vision_proxy(
    features: FeatureRows,
    text_proxy: Tensor,
    labels: Rows,
    temperature: float,
    solver: str = "fast",
    steps: int | None = None,
    tolerance: float = 1e-6,
    lr: float = 10.0,
    block_rows: int | str | None = "auto",
) -> Solution:
    """Minimise the cross-entropy between labels and `softmax(features @ W / temperature)` over columns of length 1.

    Args:
        features: `[N, E]`, a tensor or other `FeatureRows`.
        text_proxy: Where `W` starts, `[E, C]`, columns of length 1.
        labels: `[N, C]`, rows that sum to 1: a tensor or `PseudoLabels`.
        temperature: `tau_i`, positive.
        solver: "fast" (`fast_steps`) or "authors" (`authors_steps`).
        steps: The most steps of a descent (fast, default 500), or their number (authors, default 2000).
        tolerance: Of the fast solver, relative to the objective.
        lr: Of the authors' solver.
        block_rows: Rows at once; "auto" fits the device's memory, a number bounds it strictly, None takes all.

    Returns:
        The proxy and the figures of the run.

    Raises:
        UserError: An argument is not as above; the sentence says which.
    """
    if solver not in SOLVERS:
        raise UserError(f"the solvers are {', '.join(SOLVERS)}; got {solver!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise UserError(f"steps is a number of steps, 0 or more, got {steps!r}")
    if not (tolerance >= 0 and 0 < lr < math.inf):
        raise UserError(f"tolerance is 0 or more and lr is positive, got tolerance {tolerance} and lr {lr}")
    objective, start = _problem(features, text_proxy, labels, temperature, block_rows)
    options: dict[str, Any] = {"tolerance": tolerance} if solver == "fast" else {"lr": lr}
    return SOLVERS[solver](objective, start, **options, **({} if steps is None else {"steps": steps}))


@torch.no_grad()
def proxy_objective(
    features: FeatureRows, proxy: Tensor, labels: Rows, temperature: float, block_rows: int | str | None = "auto"
) -> Tensor:
    """The mean over images of the cross-entropy between labels and `softmax(features @ proxy / temperature)`.

    A float64 scalar. The arguments, `proxy [E, C]` in place of the text proxy, are those of `solve_vision_proxy`.

    Raises:
        UserError: As `solve_vision_proxy`.
    """
    objective, proxy = _problem(features, proxy, labels, temperature, block_rows)
    return objective(proxy).value


def _problem(
    features: FeatureRows, proxy: Tensor, labels: Rows, temperature: float, block_rows: int | str | None
) -> tuple[ProxyObjective, Tensor]:
    """The checked problem and its start, in one precision."""
    _check_temperature(temperature)
    if len(features.shape) != 2 or 0 in features.shape:
        raise UserError(f"features have one row per image, [N, E], got {tuple(features.shape)}")
    if proxy.dim() != 2 or proxy.shape[0] != features.shape[1] or proxy.shape[1] == 0:
        raise UserError(
            f"a proxy has one column per class, [E, C] = [{features.shape[1]}, C] for these features, "
            f"got {tuple(proxy.shape)}"
        )
    if tuple(labels.shape) != (features.shape[0], proxy.shape[1]):
        raise UserError(
            f"labels are [N, C] = {(features.shape[0], proxy.shape[1])} for these features and proxies, "
            f"got {tuple(labels.shape)}"
        )
    dtype = torch.float64 if torch.float64 in (features.dtype, proxy.dtype) else torch.float32
    proxy = proxy.to(features.device, dtype)
    objective = ProxyObjective(features, labels, temperature, block_rows)
    _check_finite(features, objective.blocks, "features")
    _check_finite(proxy, [slice(None)], "proxies")
    lengths = proxy.norm(dim=0)
    if (off := (lengths - 1).abs()).max() > 1e-3:
        raise UserError(
            f"the columns of a proxy have length 1; column {int(off.argmax())} has length {lengths[off.argmax()]:.4g}. "
            "Normalise it: torch.nn.functional.normalize(proxy, dim=0)"
        )
    for rows in objective.blocks if isinstance(labels, Tensor) else ():
        block = at_least_float32(labels[rows])
        lowest, sums = block.amin(), block.sum(dim=1)
        if not lowest >= 0:
            raise UserError(f"labels are probabilities, 0 or more; the smallest is {lowest:.4g}")
        if (off := (sums - 1).abs()).max() > 1e-3 or not off.isfinite().all():
            row = int(off.argmax())
            raise UserError(f"each row of labels sums to 1; row {rows.start + row} sums to {sums[row]:.6g}")
    return objective, proxy / lengths


def _check_finite(x: FeatureRows, blocks: list[slice], what: str) -> None:
    finite = torch.ones(len(blocks), dtype=torch.bool, device=x.device)
    for number, rows in enumerate(blocks):  # one vector: small results, kept between blocks, would split freed memory
        finite[number] = x[rows].isfinite().all()
    if not finite.all():
        rows = blocks[int(finite.logical_not().nonzero()[0])]
        bad = (rows.start or 0) + int((~x[rows].isfinite()).any(dim=1).nonzero()[0])
        raise UserError(f"{what} are finite numbers; row {bad} holds NaN or infinite ones")


def _check_shape(scores: Tensor | Cosines) -> None:
    if len(scores.shape) != 2 or 0 in scores.shape:
        raise UserError(f"scores have one row per image and one column per class, [N, C], got {tuple(scores.shape)}")


def _check_scores(formed: Rows, blocks: list[slice], temperature: float) -> None:
    """Refuse scores that are not finite, or are not when they are divided by a temperature."""
    extremes = at_least_float32(formed[slice(0, 1)]).new_empty(2, len(blocks))  # one tensor, as in `_check_finite`
    for number, rows in enumerate(blocks):
        extremes[0, number], extremes[1, number] = at_least_float32(formed[rows]).aminmax()
    span = extremes[1].max() - extremes[0].min()
    if not torch.isfinite(span):
        raise UserError("scores are finite numbers; these hold NaN or infinite ones")
    if not torch.isfinite(span / temperature * 8):
        raise UserError(f"scores divided by the temperature must be finite; {temperature} is too small")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UserError(f"a temperature is positive (0.01 is 1 / logit scale of OpenAI's models), got {temperature}")


def _logits(scores: Tensor, temperature: float) -> Tensor:
    """Scores over the temperature, each row relative to its largest: differences of close scores stay exact."""
    scores = at_least_float32(scores)
    return (scores - scores.amax(dim=1, keepdim=True)).div_(temperature)
