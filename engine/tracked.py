"""What a training by steps keeps beside its newest weights: the rate of every step, evaluations, averages."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

SCHEDULES = ("constant", "cosine")


class StepSchedule:
    """The rate of every step: a linear warm-up, then constant or along half a cosine to 0.

    Args:
        optimizer: Its groups' rates at construction are the base rates.
        name: Of `SCHEDULES`.
        steps: `T`.
        warmup: Steps of the warm-up; step `i`, counted from 0, has `(i + 1) / warmup` of the base rate.
    """

    def __init__(self, optimizer: Optimizer, name: str, steps: int, warmup: int = 0):
        self.optimizer, self.name, self.steps, self.warmup = optimizer, name, steps, warmup
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Share of the base rate."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.name == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))) / 2

    def apply(self, step: int) -> None:
        """Set the rates of a step."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = base * self.factor(step)

    def step(self) -> None:
        """Nothing follows from the end of a part."""

    def state_dict(self) -> dict[str, Any]:
        """The base rates; all else follows from the number of the step."""
        return {"base_lrs": self.base_lrs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the base rates."""
        self.base_lrs = [float(lr) for lr in state["base_lrs"]]


class Tracked:
    """What a training keeps beside its newest weights, and saves in checkpoints.

    Attributes:
        average: See `averaging.Average`, or None.
        validation: One entry for each evaluation: `step`, counted from 0, `accuracy` in percent of each source domain,
            `mean` of these, and `loss`, the mean over the domains of the mean cross-entropy; `target`, where it is
            asked for, is the accuracy of each tested domain.
        best: The weights of the first evaluation with the largest `mean`; None without evaluations.
    """

    def __init__(self, average: Any):
        self.average = average
        self.validation: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None

    @property
    def best_evaluation(self) -> dict[str, Any]:
        """The first evaluation with the largest mean."""
        return max(self.validation, key=lambda evaluation: evaluation["mean"])

    def saw(self, evaluation: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take in an evaluation of these weights."""
        self.validation.append(evaluation)
        if self.best_evaluation is evaluation:
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}
        if self.average is not None:
            self.average.evaluated(evaluation["loss"])

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        average = None if self.average is None else self.average.state_dict()
        return {"average": average, "validation": self.validation, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.validation, self.best = list(state["validation"]), state["best"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
