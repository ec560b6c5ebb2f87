"""What an epoch reports: a line every few batches, and tensorboard scalars for every batch."""

from __future__ import annotations

import datetime
import math
import time
import warnings
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
        """The batch has been trained on; `summary` holds what is shown of it.

        A shown value may be infinite or NaN (a masked term without any item, a step that a loss scaler leaves out): the
        run continues with a warning. A loss that is optimised is checked in `model_backward_and_update`.
        """
        trainer = self.trainer
        self.batch_time.update(time.time() - self.since)
        self.losses.update(summary)
        for name in summary or ():
            value = self.losses.meters[name].val
            if name not in trainer.shown_not_finite and not math.isfinite(value):
                trainer.shown_not_finite.add(name)
                warnings.warn(
                    f"{name} is {value} at epoch {trainer.epoch + 1}, batch {trainer.batch_idx + 1} of "
                    f"{trainer.num_batches}, and so are its means of this epoch; this is said once",
                    stacklevel=3,
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
