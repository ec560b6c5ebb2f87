"""Learning-rate schedules, stepped once an epoch, and the warm-up in front of them.

With W warm-up epochs and base rate b, epoch e (from 0) has the rate
- constant warm-up: `cons_lr` for e < W,
- linear warm-up: `min_lr` at e = 0, b e / W for 0 < e < W,
- the following schedule's value at e - W from e = W on. Its length is not shortened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, _LRScheduler="torch.optim.lr_scheduler:LRScheduler")

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ["linear", "constant"]


class _BaseWarmupScheduler(LRScheduler):
    """Counts the warm-up epochs and then hands each step to the schedule that follows.

    Args:
        optimizer: The optimizer whose rates are set.
        successor: The schedule that follows, made on the same optimizer.
        warmup_epoch: Number of warm-up epochs.
        last_epoch: -1 starts anew.
        verbose: Part of the interface, without effect.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The rate of each group at the current epoch."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return self.get_warmup_lr()

    def get_warmup_lr(self) -> list[float]:
        """The rate of each group during the warm-up."""
        raise NotImplementedError

    def step(self, epoch: int | None = None) -> None:
        """Advances by one epoch, or to the given one."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step() if epoch is None else self.successor.step(epoch)
        else:
            self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
            for group, rate in zip(self.optimizer.param_groups, self.get_lr()):
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """The rates that the last step set."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """Numbers only: the own counter and the state of the schedule that follows."""
        return {
            "last_epoch": self.last_epoch,
            "warmup_epoch": self.warmup_epoch,
            "base_lrs": list(self.base_lrs),
            "last_lr": list(self._last_lr),
            "successor_state": dict(self.successor.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters into the live objects.

        Args:
            state_dict: From `state_dict`, or from the original toolbox, whose state holds the following schedule itself
                as `successor`, or its numbers where `load_checkpoint` read it: they are taken, an object is dropped.
        """
        self.last_epoch = state_dict["last_epoch"]
        self.warmup_epoch = state_dict.get("warmup_epoch", self.warmup_epoch)
        self.base_lrs = list(state_dict.get("base_lrs", self.base_lrs))
        self._last_lr = list(state_dict.get("last_lr", state_dict.get("_last_lr", self._last_lr)))
        inner = state_dict.get("successor_state", state_dict.get("successor"))
        if isinstance(inner, LRScheduler):
            inner = {key: value for key, value in vars(inner).items() if key != "optimizer"}
        if inner is not None:
            self.successor.load_state_dict(inner)
        for group, rate in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = rate  # schedules continue from the present rate


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """A constant rate before the schedule that follows.

    The arguments are those of the base and `cons_lr`, the rate of the warm-up.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def get_warmup_lr(self) -> list[float]:
        """`cons_lr` for every group."""
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """A linear rise to the base rate before the schedule that follows.

    The arguments are those of the base and `min_lr`, the rate of the first epoch.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def get_warmup_lr(self) -> list[float]:
        """`min_lr` at first, then the share of the base rate that the epoch has reached."""
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [rate * self.last_epoch / self.warmup_epoch for rate in self.base_lrs]


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Makes the schedule that a configuration names, behind its warm-up if WARMUP_EPOCH is positive.

    Args:
        optimizer: The optimizer whose rates are set.
        optim_cfg: The node `cfg.OPTIM`.

    Raises:
        ValueError: LR_SCHEDULER or WARMUP_TYPE is unknown.
        TypeError: STEPSIZE has the wrong type for the schedule.
    """
    scheduler = _build_schedule(optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if optim_cfg.WARMUP_TYPE not in AVAI_WARMUPS:
        raise ValueError(f"WARMUP_TYPE must be one of {AVAI_WARMUPS}, but got {optim_cfg.WARMUP_TYPE}")
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)


def _build_schedule(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    name, stepsize, length = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE, optim_cfg.MAX_EPOCH
    if name not in AVAI_SCHEDS:
        raise ValueError(f"scheduler must be one of {AVAI_SCHEDS}, but got {name}")
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(length))
    if name == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise TypeError(f"For multi_step scheduler, stepsize must be a list, but got {type(stepsize)}")
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=list(stepsize), gamma=optim_cfg.GAMMA)
    if isinstance(stepsize, (list, tuple)):
        stepsize = stepsize[-1]
    if not isinstance(stepsize, int):
        raise TypeError(f"For single_step scheduler, stepsize must be an integer, but got {type(stepsize)}")
    return torch.optim.lr_scheduler.StepLR(
        optimizer, step_size=stepsize if stepsize > 0 else length, gamma=optim_cfg.GAMMA
    )
