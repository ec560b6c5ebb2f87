"""Averages of the weights along a training: one object sees every step, and holds the average.

- `uniform`: the mean over all steps (Arpit et al., "Ensemble of Averages", NeurIPS 2022).
- `beta`: weights in proportion to the density of Beta(beta, beta) (Shu et al., ICML 2023).
- `swad`: the mean over the steps of a valley of the source validation loss (Cha et al., NeurIPS 2021), see `Valley`.

Averages are kept in float32, or in float64 over more than 10,000 steps: in half precision most steps would be lost.
Their state is plain numbers and tensors, saved in checkpoints, so that a resumed training has the same average.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError

AVERAGES = ("none", "uniform", "beta", "swad")
SHARES = ("exact", "released")
MOST_IN_SINGLE = 10_000  # steps that are averaged in float32
Weights = Mapping[str, Tensor]


class Average(Protocol):
    """What a training needs of an average."""

    is_over: bool  # nothing that follows can enter the average: the training may stop

    def begin(self, weights: Weights) -> None:
        """See the weights before the first step."""

    def update(self, step: int, weights: Weights) -> None:
        """See the weights after a step, counted from 0."""

    def evaluated(self, loss: float) -> None:
        """Be told the source validation loss of the weights after the last step."""

    def average(self) -> dict[str, Tensor]:
        """The average as it stands, in float32."""

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""


class RunningAverage:
    """`sum_i w_i theta_i / sum_i w_i`, with `theta_0` the weights before training and `theta_i` those after `i` steps.

    As long as all weights `w_i` were zero, it is the newest `theta`.

    Args:
        weight: `w_i` of `i`.
        steps: Steps in all, which decide the precision.
    """

    is_over = False

    def __init__(self, weight: Callable[[int], float], steps: int = 0):
        self.weight, self.total = weight, 0.0
        self.dtype = torch.float64 if steps > MOST_IN_SINGLE else torch.float32
        self.mean: dict[str, Tensor] = {}

    def begin(self, weights: Weights) -> None:
        """See `theta_0`."""
        self._see(0, weights)

    @torch.no_grad()
    def _see(self, number: int, weights: Weights) -> None:
        weight = self.weight(number)
        if not self.total:
            self.mean = {name: value.detach().to(self.dtype, copy=True) for name, value in weights.items()}
        elif weight:
            share = weight / (self.total + weight)
            for name, value in weights.items():
                mean = self.mean[name].to(value.device)  # a resumed one comes from the CPU
                self.mean[name] = mean.lerp_(value.detach().to(self.dtype), share)
        self.total += weight

    def update(self, step: int, weights: Weights) -> None:
        """See the weights after a step."""
        self._see(step + 1, weights)

    def evaluated(self, loss: float) -> None:
        """The loss changes nothing."""

    def average(self) -> dict[str, Tensor]:
        """The average as it stands."""
        return {name: value.to(torch.float32, copy=True) for name, value in self.mean.items()}

    def facts(self) -> dict[str, Any]:
        """The sum of the weights, in proportion to which each step counted."""
        return {"weight_sum": self.total}

    def state_dict(self) -> dict[str, Any]:
        """The average and the sum of the weights."""
        return {"total": self.total, "mean": dict(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.total = float(state["total"])
        self.mean = {name: value.clone() for name, value in state["mean"].items()}


def uniform_weight(start: int = 0) -> Callable[[int], float]:
    """Equal weights of `theta_start` and all later ones; `sma_start_iter` of DomainBed is `start + 1`."""
    return lambda number: float(number >= start)


def beta_weight(beta: float, steps: int) -> Callable[[int], float]:
    """The density of Beta(beta, beta) at `(i + 1/2) / (T + 1)`, for `i` of 0 to `T` steps."""
    log_scale = math.lgamma(2 * beta) - 2 * math.lgamma(beta)

    def weight(number: int) -> float:
        place = (number + 0.5) / (steps + 1)
        return math.exp(log_scale + (beta - 1) * math.log(place * (1 - place)))

    return weight


@dataclass(frozen=True)
class Segment:
    """The mean weights of the steps from `first` to `last`, and the validation loss after the last of them."""

    number: int
    first: int
    last: int
    loss: float
    mean: dict[str, Tensor]  # on the CPU


class Valley:
    """The mean over a valley of the source validation loss; a segment is the steps between two evaluations.

    The valley is found at the first evaluation where the oldest of the last `n_converge` losses is their (first) least:
    its segment `m` is the start, and `(1 + tolerance)` times the mean of these losses the threshold. Segments just
    before `m`, among the last `n_tolerance`, belong to it while their loss is at most the threshold. A later segment
    joins when `n_tolerance - 1` more are evaluated and the least of all these losses is at most the threshold;
    otherwise the valley has ended, and so may the training. When training ends first, the waiting segments join by the
    same rule. Without a valley the last segment is the result.

    `shares="exact"` counts each segment of the valley once. `released` is the average of the authors' program: it
    leaves out the earliest segment of those before `m`, mostly counts `m` twice, counts the first segments up to three
    times where the least loss is among the first evaluations, and loses `m` where `n_converge > n_tolerance`.

    Args:
        n_converge: Evaluations of which the oldest must be the best.
        n_tolerance: Evaluations of which one must stay below the threshold.
        tolerance: See above.
        shares: `exact` or `released`.
        steps: Steps in all, which decide the precision.
    """

    def __init__(
        self, n_converge: int = 3, n_tolerance: int = 6, tolerance: float = 0.3, shares: str = "exact", steps: int = 0
    ):
        self.n_converge, self.n_tolerance, self.tolerance = n_converge, n_tolerance, tolerance
        self.released, self.steps = shares == "released", steps
        self.running, self.first, self.last = RunningAverage(uniform_weight(), steps), 0, -1
        self.window: list[Segment] = []  # the newest ones
        self.evaluations = 0
        self.start = self.next = -1  # numbers of segment m, and of the one that joins next; -1: no valley yet
        self.threshold = math.nan
        self.joined: list[Segment] = []  # without their weights
        self.mean = RunningAverage(uniform_weight(), steps)
        self.is_over = False

    def begin(self, weights: Weights) -> None:
        """The weights before training belong to no segment."""

    def update(self, step: int, weights: Weights) -> None:
        """See the weights after a step."""
        if not self.running.total:
            self.first = step
        self.running._see(0, weights)
        self.last = step

    def evaluated(self, loss: float) -> None:
        """End a segment, and let those join that can."""
        mean = {name: value.cpu() for name, value in self.running.average().items()}
        self.running = RunningAverage(uniform_weight(), self.steps)
        if self.is_over:
            return
        self.window.append(Segment(self.evaluations, self.first, self.last, loss, mean))
        self.window = self.window[-max(self.n_converge, self.n_tolerance) :]
        self.evaluations += 1
        if self.start >= 0 and self.released:
            self._follow_released()
        elif self.start >= 0 or self._starts():
            self._follow()

    def _starts(self) -> bool:
        """Whether the valley is found here, with the segments before it."""
        newest = self.window[-self.n_converge :]
        losses = [segment.loss for segment in newest]
        if len(newest) < self.n_converge or losses.index(min(losses)) > 0:
            return False
        self.start = self.next = newest[0].number
        self.threshold = sum(losses) / len(losses) * (1 + self.tolerance)
        if self.released and self.n_tolerance < self.n_converge:
            before = newest[1 : 1 + self.n_converge - self.n_tolerance]
        elif self.released and self.n_tolerance > self.n_converge:
            known = self.window[: self.n_tolerance - self.n_converge + 1]  # m is the last of a full window
            before = self._below(known)[1:]
        elif self.released:
            before = []
        else:
            before = self._below([each for each in self.window[-self.n_tolerance :] if each.number < self.start])
        if self.released and not before:
            self.mean.mean = dict(newest[0].mean)  # what the first segment that joins takes the place of
        for segment in before:
            self._join(segment)
        return not self.released

    def _below(self, segments: list[Segment]) -> list[Segment]:
        """The last of some segments, from behind the last one above the threshold on."""
        above = [place for place, segment in enumerate(segments) if segment.loss > self.threshold]
        return segments[above[-1] + 1 if above else 0 :]

    def _follow(self) -> None:
        """Every segment whose followers are all evaluated joins once."""
        while not self.is_over and self.next <= self.evaluations - self.n_tolerance:
            self._join_next([each for each in self.window if each.number >= self.next][: self.n_tolerance])

    def _join_next(self, followers: list[Segment]) -> None:
        """Let the first of some segments join, or end the valley."""
        if min(segment.loss for segment in followers) > self.threshold:
            self.is_over = True
            return
        self._join(followers[0])
        self.next += 1

    def _follow_released(self) -> None:
        """The oldest of the last segments joins, however often it is the oldest."""
        window = self.window[-self.n_tolerance :]
        if window[0].number < self.start:
            return
        if min(segment.loss for segment in window) > self.threshold:
            self.is_over = True
        else:
            self._join(window[0])

    def _join(self, segment: Segment) -> None:
        self.mean._see(0, segment.mean)
        self.joined.append(Segment(segment.number, segment.first, segment.last, segment.loss, {}))

    def finished(self) -> "Valley":
        """What it is if training ends here: the waiting segments join."""
        other = Valley(self.n_converge, self.n_tolerance, self.tolerance, "exact", self.steps)
        other.load_state_dict(self.state_dict())
        if other.start < 0 or other.is_over:
            return other
        if self.released:
            waiting = other.window[-self.n_tolerance :][1:]
        else:
            waiting = [segment for segment in other.window if segment.number >= other.next]
        while waiting and not other.is_over:
            other._join_next(waiting)
            waiting = waiting[1:]
        other.is_over = self.is_over
        return other

    def average(self) -> dict[str, Tensor]:
        """The average if training ends here."""
        done = self.finished()
        return done.mean.average() if done.start >= 0 else {n: v.float() for n, v in done.window[-1].mean.items()}

    def facts(self) -> dict[str, Any]:
        """Steps of the valley, and how often each of its segments counts."""
        done = self.finished()
        parts = done.joined or [Segment(each.number, each.first, each.last, each.loss, {}) for each in done.window[-1:]]
        numbers = [segment.number for segment in parts]
        return {
            "found": done.start >= 0,
            "ended": done.is_over,
            "threshold": done.threshold if done.start >= 0 else None,
            "first_step": parts[0].first if parts else -1,
            "last_step": parts[-1].last if parts else -1,
            "segments": {str(number): numbers.count(number) / len(numbers) for number in sorted(set(numbers))},
        }

    def state_dict(self) -> dict[str, Any]:
        """Segments, the average so far and the place in the valley."""
        return {
            "running": self.running.state_dict(),
            "mean": self.mean.state_dict(),
            "window": [dict(vars(segment)) for segment in self.window],
            "joined": [dict(vars(segment)) for segment in self.joined],
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.running.load_state_dict(state["running"])
        self.mean.load_state_dict(state["mean"])
        self.window = [Segment(**segment) for segment in state["window"]]
        self.joined = [Segment(**segment) for segment in state["joined"]]
        for name in _NUMBERS:
            setattr(self, name, state[name])


_NUMBERS = ("first", "last", "evaluations", "start", "threshold", "is_over", "next")


def make_average(
    name: str,
    steps: int,
    start: int = 0,
    beta: float = 0.5,
    n_converge: int = 3,
    n_tolerance: int = 6,
    tolerance: float = 0.3,
    shares: str = "exact",
) -> Average | None:
    """The average of a name in `AVERAGES`; None for `none`.

    Args:
        name: Which.
        steps: `T`, steps in all.
        start: Of `uniform`: steps before the first weights that count.
        beta: Of `beta`.
        n_converge: Of `swad`, as `n_tolerance`, `tolerance` and `shares`: see `Valley`.

    Raises:
        UserError: Unknown names.
    """
    if name not in AVERAGES or shares not in SHARES:
        raise UserError(
            f"the average is {name!r} with {shares!r} shares; expected one of {', '.join(AVERAGES)}, with one of "
            f"{', '.join(SHARES)}"
        )
    if name == "swad":
        return Valley(n_converge, n_tolerance, tolerance, shares, steps)
    weights = {"uniform": uniform_weight(start), "beta": beta_weight(beta, steps)}
    return RunningAverage(weights[name], steps) if name in weights else None
