"""DomainMix: mixup (Zhang et al., ICLR 2018) between images of different source domains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import TrainerX
from dassl.metrics import compute_accuracy

TYPES = ("crossdomain", "random")


@TRAINER_REGISTRY.register()
class DomainMix(TrainerX):
    """Trains a `SimpleNet` on mixed images.

    Args:
        cfg: The configuration; reads TRAINER.DOMAINMIX.
    """

    def __init__(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.DOMAINMIX
        self.mix_type, self.alpha, self.beta = node.TYPE, node.ALPHA, node.BETA
        if self.mix_type not in TYPES:
            raise NotImplementedError(f"TRAINER.DOMAINMIX.TYPE must be one of {TYPES}, but got {self.mix_type}")
        super().__init__(cfg)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step on a mixed batch."""
        images, label_a, label_b, weight = self.parse_batch_train(batch)
        output = self.model(images)
        loss = weight * F.cross_entropy(output, label_a) + (1 - weight) * F.cross_entropy(output, label_b)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label_a)[0].item()}

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, float]:
        """Mixed images, the labels of both parts, and the first part's weight."""
        return self.domain_mix(*super().parse_batch_train(batch))

    def domain_mix(self, x: Tensor, target: Tensor, domain: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Mixes each image with another, of another domain if the batch has several.

        Args:
            x: Images [B, C, H, W].
            target: Labels [B].
            domain: Domains [B].
        """
        weight = torch.distributions.Beta(self.alpha, self.beta).sample().item() if self.alpha > 0 else 1.0
        partner = torch.randperm(len(x), device=x.device)
        if self.mix_type == "crossdomain" and len(domain.unique()) > 1:
            partner = torch.cat([_draw(torch.nonzero(domain != own).flatten()) for own in domain])
        return weight * x + (1 - weight) * x[partner], target, target[partner], weight


def _draw(indices: Tensor) -> Tensor:
    """One of the indices, as a tensor [1]."""
    return indices[torch.randint(len(indices), (1,), device=indices.device)]
