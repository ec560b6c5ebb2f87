"""Epochs over a labelled loader (TrainerX), and over a labelled and an unlabelled one (TrainerXU)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from dassl.utils.errors import CheckError

from .progress import EpochReport
from .simple_trainer import SimpleTrainer


class TrainerX(SimpleTrainer):
    """Trains on labelled data."""

    def run_epoch(self) -> None:
        """One pass over `train_loader_x`; `epoch`, `batch_idx` and `num_batches` are set for each batch."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        report = EpochReport(self)
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            report.batch_arrived()
            report.batch_done(self.forward_backward(batch))

    run_epoch.calls_forward_backward = True

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and domains on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"]), self.to_device(batch["domain"])


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled data."""

    def run_epoch(self) -> None:
        """As many pairs of batches as TRAIN.COUNT_ITER says; a loader that runs out starts again.

        Raises:
            ValueError: COUNT_ITER is unknown.
        """
        if self.train_loader_u is None:
            raise CheckError(f"{type(self).__name__} needs unlabelled data, but the data set has no train_u")
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in lengths:
            raise ValueError(f"TRAIN.COUNT_ITER must be one of {list(lengths)}, but got {count}")
        self.set_model_mode("train")
        self.num_batches = lengths[count]
        report = EpochReport(self)
        batches = zip(range(self.num_batches), _endless(self.train_loader_x), _endless(self.train_loader_u))
        for batch_idx, batch_x, batch_u in batches:
            self.batch_idx = batch_idx
            report.batch_arrived()
            report.batch_done(self.forward_backward(batch_x, batch_u))

    run_epoch.calls_forward_backward = True

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Labelled images, their labels, and unlabelled images, on the device."""
        return self.to_device(batch_x["img"]), self.to_device(batch_x["label"]), self.to_device(batch_u["img"])


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader
