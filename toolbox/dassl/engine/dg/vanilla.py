"""Empirical risk minimisation: cross entropy on all source domains together."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import TrainerX
from dassl.metrics import compute_accuracy


@TRAINER_REGISTRY.register()
class Vanilla(TrainerX):
    """Trains a `SimpleNet` by cross entropy."""

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step on a batch."""
        input, label = self.parse_batch_train(batch)
        output = self.model(input)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return summary

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and labels on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])
