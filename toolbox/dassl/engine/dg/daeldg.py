"""DAEL for domain generalisation (Zhou et al., "Domain Adaptive Ensemble Learning", IEEE TIP 2021).

One linear expert a source domain on a shared backbone. Each expert learns on its own domain; the mean of the others, on
strongly augmented images, follows its prediction on weakly augmented ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import SimpleNet, TrainerX
from dassl.metrics import compute_accuracy
from dassl.modeling.ops.utils import create_onehot
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param
from dassl.utils.errors import CheckError

SMALL = 1e-5  # keeps the logarithm finite


class Experts(nn.Module):
    """One linear classifier with softmax for each source domain.

    Args:
        n_source: Number of source domains.
        fdim: Width of the features.
        num_classes: Number of classes.
    """

    def __init__(self, n_source: int, fdim: int, num_classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(fdim, num_classes) for _ in range(n_source))

    def forward(self, i: int, x: Tensor) -> Tensor:
        """Features [B, D] -> probabilities [B, C] of the expert i."""
        return self.linears[i](x).softmax(1)


@TRAINER_REGISTRY.register()
class DAELDG(TrainerX):
    """Trains a backbone `F` and the experts `E`; their mean prediction is deployed.

    Args:
        cfg: The configuration; reads TRAINER.DAELDG.STRONG_TRANSFORMS and the domains in a batch.
    """

    def __init__(self, cfg: CfgNode) -> None:
        n_domain = cfg.DATALOADER.TRAIN_X.N_DOMAIN
        self.n_domain = n_domain if n_domain > 0 else len(cfg.DATASET.SOURCE_DOMAINS)
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Checks the sampler and the transforms.

        Raises:
            AssertionError: The sampler is not RandomDomainSampler, or there is no strong transform.
        """
        if cfg.DATALOADER.TRAIN_X.SAMPLER != "RandomDomainSampler":
            raise CheckError(f"DAELDG needs TRAIN_X.SAMPLER RandomDomainSampler, not {cfg.DATALOADER.TRAIN_X.SAMPLER}")
        if not cfg.TRAINER.DAELDG.STRONG_TRANSFORMS:
            raise CheckError("DAELDG needs TRAINER.DAELDG.STRONG_TRANSFORMS")

    def build_data_loader(self) -> None:
        """Loaders with a weak and a strong view of each training image."""
        strong = self.cfg.TRAINER.DAELDG.STRONG_TRANSFORMS
        views = [build_transform(self.cfg), build_transform(self.cfg, choices=strong)]
        self.dm = DataManager(self.cfg, custom_tfm_train=views)
        self.train_loader_x = self.dm.train_loader_x
        self.num_classes = self.dm.num_classes

    def build_model(self) -> None:
        """The backbone and the experts, registered as "F" and "E"."""
        self.F = SimpleNet(self.cfg, self.cfg.MODEL, 0)
        self.E = Experts(self.dm.num_source_domains, self.F.fdim, self.num_classes)
        for name, net in (("F", self.F), ("E", self.E)):
            net.to(self.device)
            print(f"# params of {name}: {count_num_param(net):,}")
            optim = build_optimizer(net, self.cfg.OPTIM)
            self.register_model(name, net, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step on a batch of equal shares of several domains."""
        weak, strong, label, domain = self.parse_batch_train(batch)
        loss_x, loss_cr, hits = torch.zeros(()).to(weak), torch.zeros(()).to(weak), []
        for own in domain.unique().tolist():
            mine = domain == own
            predicted = self.E(own, self.F(weak[mine]))
            onehot = create_onehot(label[mine], self.num_classes)
            loss_x = loss_x - (onehot * (predicted + SMALL).log()).sum(1).mean() / self.n_domain
            hits.append(compute_accuracy(predicted.detach(), label[mine])[0].item())
            others = [j for j in range(len(self.E.linears)) if j != own]
            if others:
                features = self.F(strong[mine])
                consensus = torch.stack([self.E(j, features) for j in others]).mean(0)
                loss_cr = loss_cr + ((consensus - predicted.detach()) ** 2).sum(1).mean() / self.n_domain
        self.model_backward_and_update(loss_x + loss_cr)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_cr": loss_cr.item(), "acc": sum(hits) / len(hits)}

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weak views, strong views, labels and domains, on the device."""
        return tuple(self.to_device(batch[key]) for key in ("img", "img2", "label", "domain"))

    def model_inference(self, input: Tensor) -> Tensor:
        """Mean probabilities [B, C] of all experts."""
        features = self.F(input)
        return torch.stack([self.E(i, features) for i in range(len(self.E.linears))]).mean(0)
