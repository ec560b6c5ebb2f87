"""FixMatch (Sohn et al., NeurIPS 2020), semi-supervised learning with consistency and confidence.

What the model is sure of on a weak view of an image is the label of a strong view of the same image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import TrainerXU
from dassl.metrics import compute_accuracy
from dassl.utils.errors import CheckError


@TRAINER_REGISTRY.register()
class FixMatch(TrainerXU):
    """Trains a `SimpleNet`. All images, labelled ones too, count as unlabelled in the second term.

    Args:
        cfg: The configuration; reads TRAINER.FIXMATCH.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.weight_u = cfg.TRAINER.FIXMATCH.WEIGHT_U
        self.conf_thre = cfg.TRAINER.FIXMATCH.CONF_THRE

    def check_cfg(self, cfg: CfgNode) -> None:
        """Checks the transforms.

        Raises:
            AssertionError: There is no strong transform.
        """
        if not cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS:
            raise CheckError("FixMatch needs TRAINER.FIXMATCH.STRONG_TRANSFORMS")

    def build_data_loader(self) -> None:
        """Loaders with a weak and a strong view of each training image."""
        strong = self.cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS
        views = [build_transform(self.cfg), build_transform(self.cfg, choices=strong)]
        self.dm = DataManager(self.cfg, custom_tfm_train=views)
        self._take_from_data_manager()

    def assess_y_pred_quality(self, y_pred: Tensor, y_true: Tensor, mask: Tensor) -> dict[str, float]:
        """How good pseudo-labels are.

        Args:
            y_pred: Pseudo-labels [B].
            y_true: Labels [B].
            mask: 1 where the model is sure, 0 elsewhere [B].

        Returns:
            `acc_thre` (of those that it is sure of; 0 if there are none) and `acc_raw` (of all), in percent, and
            `keep_rate`, the share that it is sure of, in percent.
        """
        right, kept = (y_pred == y_true).float(), mask.sum()
        return {
            "acc_thre": (100 * (right * mask).sum() / kept.clamp(min=1)).item(),
            "acc_raw": (100 * right.mean()).item(),
            "keep_rate": (100 * mask.mean()).item(),
        }

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:
        """One step on a labelled and an unlabelled batch."""
        weak_x, strong_x, label_x, weak_u, strong_u, label_u = self.parse_batch_train(batch_x, batch_u)
        with torch.no_grad():
            probability, pseudo = self.model(torch.cat([weak_x, weak_u])).softmax(1).max(1)
            mask = (probability >= self.conf_thre).float()
        own = len(weak_x)
        quality = self.assess_y_pred_quality(pseudo[own:], label_u, mask[own:])

        output_x = self.model(weak_x)
        loss_x = F.cross_entropy(output_x, label_x)
        loss_u = F.cross_entropy(self.model(torch.cat([strong_x, strong_u])), pseudo, reduction="none")
        loss_u = (loss_u * mask).mean()
        self.model_backward_and_update(loss_x + self.weight_u * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {
            "loss_x": loss_x.item(),
            "acc_x": compute_accuracy(output_x, label_x)[0].item(),
            "loss_u": loss_u.item(),
            **{f"y_u_pred_{name}": value for name, value in quality.items()},
        }

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[Tensor, ...]:
        """Weak views, strong views and labels of both batches, on the device.

        The labels of the second batch serve `assess_y_pred_quality` alone.
        """
        return tuple(self.to_device(batch[key]) for batch in (batch_x, batch_u) for key in ("img", "img2", "label"))
