"""What an epoch reports: a line every few batches, and tensorboard scalars for every batch."""

from __future__ import annotations

import datetime
import math
import time
from typing import Any

from dassl.utils import AverageMeter, MetricMeter


class EpochReport:
    """Times the batches of an epoch and reports their losses.

    Args:
        trainer: The trainer; its `epoch`, `max_epoch`, `batch_idx`, `num_batches` and `cfg.TRAIN.PRINT_FREQ` are read.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self.since = time.time()

    def batch_arrived(self) -> None:
        """The loader has given a batch."""
        self.data_time.update(time.time() - self.since)

    def batch_done(self, summary: dict[str, Any] | None) -> None:
        """The batch has been trained on; `summary` holds its losses.

        Raises:
            FloatingPointError: A loss is infinite or NaN.
        """
        trainer = self.trainer
        self.batch_time.update(time.time() - self.since)
        self.losses.update(summary)
        for name in summary or ():
            if "loss" in name and not math.isfinite(self.losses.meters[name].val):
                raise FloatingPointError(
                    f"Loss is infinite or NaN! ({name} = {self.losses.meters[name].val} at epoch {trainer.epoch + 1}, "
                    f"batch {trainer.batch_idx + 1} of {trainer.num_batches})"
                )
        if self._is_due():
            print(self._line())
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in self.losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        self.since = time.time()

    def _is_due(self) -> bool:
        every = self.trainer.cfg.TRAIN.PRINT_FREQ
        return every > 0 and ((self.trainer.batch_idx + 1) % every == 0 or self.trainer.num_batches < every)

    def _line(self) -> str:
        trainer = self.trainer
        left = trainer.num_batches - trainer.batch_idx - 1
        left += (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        parts = [
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}]",
            f"batch [{trainer.batch_idx + 1}/{trainer.num_batches}]",
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})",
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f})",
            str(self.losses),
            f"lr {trainer.get_current_lr():.4e}",
            f"eta {datetime.timedelta(seconds=int(self.batch_time.avg * left))}",
        ]
        return " ".join(part for part in parts if part)
