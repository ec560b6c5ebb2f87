"""The baseline of domain adaptation: cross entropy on the source domains; the target's images are left alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import TrainerXU
from dassl.metrics import compute_accuracy


@TRAINER_REGISTRY.register()
class SourceOnly(TrainerXU):
    """Trains a `SimpleNet` on the labelled images alone."""

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:
        """One step on the labelled batch."""
        input, label = self.parse_batch_train(batch_x, batch_u)
        output = self.model(input)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Labelled images and their labels, on the device."""
        return self.to_device(batch_x["img"]), self.to_device(batch_x["label"])
