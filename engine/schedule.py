"""Learning rates by epoch in closed form, for Dassl's `OPTIM` settings.

Upstream's warm-up wrappers stop with a TypeError on torch 2.7 and newer and freeze the rate after a resume; this
schedule has no inner scheduler object: its whole state is the number of finished epochs.
"""

import math
from bisect import bisect_right
from typing import Any

from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl_clip.results.errors import UserError

SCHEDULES = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")


class EpochSchedule:
    """Sets the learning rate of every parameter group; `step()` moves to the next epoch.

    Args:
        optimizer: Its groups' rates at construction are the base rates.
        optim_cfg: Dassl's `OPTIM` node: `LR_SCHEDULER`, `STEPSIZE`, `GAMMA`, `MAX_EPOCH` and the `WARMUP_*` keys.

    Raises:
        UserError: Unknown `LR_SCHEDULER` or `WARMUP_TYPE`, or no epochs.
    """

    def __init__(self, optimizer: Optimizer, optim_cfg: CfgNode):
        if optim_cfg.LR_SCHEDULER not in SCHEDULES:
            raise UserError(f"OPTIM.LR_SCHEDULER is {optim_cfg.LR_SCHEDULER!r}; expected one of {SCHEDULES}")
        if optim_cfg.WARMUP_EPOCH > 0 and optim_cfg.WARMUP_TYPE not in WARMUPS:
            raise UserError(f"OPTIM.WARMUP_TYPE is {optim_cfg.WARMUP_TYPE!r}; expected one of {WARMUPS}")
        if optim_cfg.MAX_EPOCH < 1:
            raise UserError(f"OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}; a method that trains needs 1 or more")
        self.optimizer = optimizer
        self.cfg = optim_cfg
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.epoch = 0
        self._apply()

    def lr(self, epoch: int, base: float) -> float:
        """The rate of the 0-based epoch for a group with this base rate."""
        cfg, warmup = self.cfg, max(self.cfg.WARMUP_EPOCH, 0)
        if epoch < warmup:
            if cfg.WARMUP_TYPE == "constant":
                return float(cfg.WARMUP_CONS_LR)
            return float(cfg.WARMUP_MIN_LR) if epoch == 0 else base * epoch / warmup
        if cfg.WARMUP_RECOUNT:
            return base * self._factor(epoch - warmup)
        # Without a recount the schedule continues from epoch W with the rate still at its base.
        return base * self._factor(epoch) / self._factor(warmup)

    def _factor(self, epoch: int) -> float:
        cfg = self.cfg
        if cfg.LR_SCHEDULER == "cosine":
            return (1 + math.cos(math.pi * epoch / cfg.MAX_EPOCH)) / 2
        steps = list(cfg.STEPSIZE)
        if cfg.LR_SCHEDULER == "multi_step":
            return float(cfg.GAMMA ** bisect_right(sorted(steps), epoch))
        step = steps[-1] if steps[-1] > 0 else cfg.MAX_EPOCH
        return float(cfg.GAMMA ** (epoch // step))

    def step(self) -> None:
        """Move to the next epoch."""
        self.epoch += 1
        self._apply()

    def _apply(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = self.lr(self.epoch, base)

    def get_last_lr(self) -> list[float]:
        """The current rate of every parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only, so that a checkpoint loads with `weights_only=True`."""
        return {"epoch": self.epoch, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the live optimizer's groups get the rates of that epoch."""
        self.epoch = int(state["epoch"])
        self.base_lrs = [float(lr) for lr in state["base_lrs"]]
        self._apply()
