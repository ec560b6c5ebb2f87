"""CrossGrad (Shankar et al., "Generalizing Across Domains via Cross-Gradient Training", ICLR 2018).

The label net learns on images moved along the gradient of the domain net, and the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.trainer import SimpleNet, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param

CLIP = 0.1  # bound of the gradients that move an image


@TRAINER_REGISTRY.register()
class CrossGrad(TrainerX):
    """Trains a label net `F` and a domain net `D`; `F` is deployed.

    Args:
        cfg: The configuration; reads TRAINER.CROSSGRAD.
    """

    def __init__(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.CROSSGRAD
        self.eps_f, self.eps_d = node.EPS_F, node.EPS_D
        self.alpha_f, self.alpha_d = node.ALPHA_F, node.ALPHA_D
        super().__init__(cfg)

    def build_model(self) -> None:
        """The two nets, registered as "F" and "D"."""
        self.F = self._build_net("F", self.num_classes)
        self.D = self._build_net("D", self.num_source_domains)

    def _build_net(self, name: str, num_outputs: int) -> nn.Module:
        print(f"Building {name}")
        net = SimpleNet(self.cfg, self.cfg.MODEL, num_outputs).to(self.device)
        print(f"# params: {count_num_param(net):,}")
        optim = build_optimizer(net, self.cfg.OPTIM)
        self.register_model(name, net, optim, build_lr_scheduler(optim, self.cfg.OPTIM))
        return net

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step of both nets."""
        input, label, domain = self.parse_batch_train(batch)
        input_d = input + self.eps_f * self._bounded_gradient(self.D, input, domain)
        input_f = input + self.eps_d * self._bounded_gradient(self.F, input, label)

        loss_f = _mix(self.alpha_f, *(F.cross_entropy(self.F(x), label) for x in (input, input_d)))
        self.model_backward_and_update(loss_f, "F")
        loss_d = _mix(self.alpha_d, *(F.cross_entropy(self.D(x), domain) for x in (input, input_f)))
        self.model_backward_and_update(loss_d, "D")

        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_f": loss_f.item(), "loss_d": loss_d.item()}

    @staticmethod
    def _bounded_gradient(net: nn.Module, input: Tensor, target: Tensor) -> Tensor:
        """Gradient of the cross entropy to the images, clamped: the shape of `input`."""
        input = input.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(input), target), input)
        return gradient.clamp(-CLIP, CLIP)

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits of the label net."""
        return self.F(input)


def _mix(alpha: float, plain: Tensor, moved: Tensor) -> Tensor:
    return (1 - alpha) * plain + alpha * moved
