"""MIRO: fine-tuning whose features stay near those of the frozen tower.

Source: Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV 2022,
arXiv 2203.10789, and the authors' program. With the features `f_l` of some layers, those of the frozen tower `f0_l` of
the same images, and a learned variance `v_l` for each channel,

    loss = CE + LAMBDA sum_l mean[(f_l - f0_l)^2 / v_l + log v_l] / 2,        v_l = softplus(b_l) + 1e-5.

`b_l` starts where `v_l` is 0.1 and is learned at `VARIANCE_RATE` times the rate. Of a ViT the layers are the output of
its convolution and of the blocks that end the quarters of its depth (2, 5, 8 and 11 of ViT-B/16); of a ResNet its stem
and its four stages. The mean of `f_l` given `f0_l` is `f0_l` itself, as in the program.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.method import at_least
from dassl_clip.results.errors import UserError

from .erm import ERM

FIRST_VARIANCE, LEAST_VARIANCE = 0.1, 1e-5
GUIDANCE = "guidance"


class Guidance(nn.Module):
    """The learned variances of some layers.

    Args:
        shapes: Of the features of each layer: `[B, K, H, W]` with `K` channels, or tokens `[..., K]`.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]):
        super().__init__()
        first = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))
        each = [(1, shape[1], 1, 1) if len(shape) == 4 else (*[1] * (len(shape) - 1), shape[-1]) for shape in shapes]
        self.b = nn.ParameterList([nn.Parameter(torch.full(shape, first)) for shape in each])

    def variances(self) -> list[Tensor]:
        """`v_l` of each layer."""
        return [F.softplus(b) + LEAST_VARIANCE for b in self.b]

    def forward(self, features: Sequence[Tensor], frozen: Sequence[Tensor]) -> Tensor:
        """The regulariser, a scalar, of features of each layer and those of the frozen tower."""
        terms = [
            ((new.float() - old.float()).square() / variance + variance.log()).mean() / 2
            for new, old, variance in zip(features, frozen, self.variances(), strict=True)
        ]
        return torch.stack(terms).sum()


def guided_layers(tower: nn.Module) -> list[nn.Module]:
    """The layers of an image tower whose outputs are kept near those of the frozen one.

    Raises:
        UserError: The tower is of another kind.
    """
    blocks = list(getattr(getattr(tower, "transformer", None), "resblocks", ()))
    if blocks and hasattr(tower, "conv1"):
        ends = sorted({max(0, len(blocks) * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})
        return [tower.get_submodule("conv1"), *(blocks[number] for number in ends)]
    if hasattr(tower, "layer4"):
        return [tower.get_submodule(name) for name in ("avgpool", "layer1", "layer2", "layer3", "layer4")]
    raise UserError(
        f"MIRO needs the layers of open_clip's ViT or ResNet, and this image tower is a {type(tower).__name__}; take "
        "such a one, as any of OpenAI's models, or ERM"
    )


@contextmanager
def listening(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers during a pass, in their order."""
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@TRAINER_REGISTRY.register()
class MIRO(ERM):
    """Cross-entropy, and the regulariser of intermediate features."""

    settings = {**ERM.settings, "LAMBDA": 1.0, "VARIANCE_RATE": 10.0}
    unread_parts = (f"{GUIDANCE}.",)

    limits = {**ERM.limits, **dict.fromkeys(("LAMBDA", "VARIANCE_RATE"), at_least(0))}

    def frozen_tower(self) -> nn.Module:
        """The tower that features stay near."""
        return self.backbone.model.get_submodule("visual")

    def learner(self) -> nn.Module:
        """The tower, its head, and the variances."""
        model = super().learner()
        with torch.no_grad(), listening(guided_layers(self.frozen_tower())) as outputs:
            self.frozen_tower()(torch.zeros(1, 3, *self.backbone.image_size, device=self.device))
        model.add_module(GUIDANCE, Guidance([output.shape for output in outputs]))
        return model

    def rate_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """The variances at a rate of their own."""
        own = list(self._learned.get_submodule(GUIDANCE).parameters())
        return [*super().rate_groups(), (self.node.VARIANCE_RATE, own)]

    def model_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those of the tower and the head."""
        return [(name, value) for name, value in super().model_parameters() if not name.startswith(GUIDANCE)]

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """Cross-entropy and the regulariser of images `[B, 3, H, W]` with labels `[B]`."""
        with listening(guided_layers(self.model.tower)) as features:
            terms, weights, tensors = super().loss_terms(images, labels)
        with torch.no_grad(), listening(guided_layers(self.frozen_tower())) as frozen, self.precision.autocast():
            self.frozen_tower()(self.model.with_statistics(images))
        terms["guidance"] = self.model.get_submodule(GUIDANCE)(features, frozen)
        return terms, weights | {"guidance": self.node.LAMBDA}, tensors
