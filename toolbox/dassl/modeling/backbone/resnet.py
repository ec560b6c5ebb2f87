"""Residual networks (He et al., CVPR 2016) of torchvision's blocks, without their classifier.

A name like resnet18_ms_l12 has MixStyle after the first two stages, resnet18_efdmix_l12 has EFDMix there; all names,
`resnet18` to `resnet152` and those of three depths with one of the two, are functions of this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dassl.modeling.ops import EFDMix, MixStyle
from dassl.utils.on_demand import import_on_demand

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__getattr__ = import_on_demand(
    __name__,
    BasicBlock="torchvision.models.resnet:BasicBlock",
    Bottleneck="torchvision.models.resnet:Bottleneck",
    conv1x1="torchvision.models.resnet:conv1x1",
    conv3x3="torchvision.models.resnet:conv3x3",
)


class ResNet(Backbone):
    """A residual network up to its global average.

    Args:
        block: torchvision's `BasicBlock` or `Bottleneck`.
        layers: Blocks of each of the four stages.
        ms_class: `MixStyle` or `EFDMix`; None mixes nothing.
        ms_layers: Stages ("layer1" to "layer3") whose output is mixed.
        ms_p: Probability of mixing.
        ms_a: Parameter of its Beta distribution.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        ms_class: type[nn.Module] | None = None,
        ms_layers: Sequence[str] = (),
        ms_p: float = 0.5,
        ms_a: float = 0.1,
        **kwargs,
    ) -> None:
        from torchvision.models import ResNet as Whole

        super().__init__()
        net = Whole(block, list(layers))
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.mixstyle = ms_class(p=ms_p, alpha=ms_a, mix="random") if ms_class is not None and ms_layers else None
        self.ms_layers = list(ms_layers)
        self._out_features = net.fc.in_features

    def featuremaps(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_features, H / 32, W / 32]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            if self.mixstyle is not None and name in self.ms_layers:
                x = self.mixstyle(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        return self.global_avgpool(self.featuremaps(x)).flatten(1)


BLOCKS = {
    "resnet18": ("BasicBlock", [2, 2, 2, 2]),
    "resnet34": ("BasicBlock", [3, 4, 6, 3]),
    "resnet50": ("Bottleneck", [3, 4, 6, 3]),
    "resnet101": ("Bottleneck", [3, 4, 23, 3]),
    "resnet152": ("Bottleneck", [3, 8, 36, 3]),
}


def init_pretrained_weights(model: nn.Module, model_url: str) -> None:
    """Loads the weights at an address, but for the classifier; torch.hub keeps them.

    Raises:
        OSError: They are not on this machine and cannot be fetched.
    """
    from torch.hub import load_state_dict_from_url

    try:
        state = load_state_dict_from_url(model_url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise OSError(
            f"The weights {model_url} are not on this machine and cannot be fetched ({error}). Put the file into the "
            "checkpoint folder of torch.hub, or set MODEL.BACKBONE.PRETRAINED False"
        ) from error
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        warnings.warn(f"{model_url} lacks {len(missing)} weights of the network, such as {missing[0]}", stacklevel=3)


def _register(name: str, ms_class: type[nn.Module] | None = None, stages: int = 0) -> Callable[..., ResNet]:
    """Registers the factory of a network, with a layer that mixes after its first stages."""

    def build(pretrained: bool = True, **kwargs) -> ResNet:
        from torchvision import models

        block, layers = BLOCKS[name]
        net = ResNet(getattr(models.resnet, block), layers, ms_class, [f"layer{k + 1}" for k in range(stages)])
        if pretrained:
            init_pretrained_weights(net, models.get_model_weights(name).IMAGENET1K_V1.url)
        return net

    mixing = {None: "", MixStyle: "_ms_l", EFDMix: "_efdmix_l"}[ms_class]
    build.__name__ = build.__qualname__ = f"{name}{mixing}{'123'[:stages]}"
    BACKBONE_REGISTRY.register(build)
    return build


MIXED = ("resnet18", "resnet50", "resnet101")
FACTORIES = [_register(name) for name in BLOCKS] + [
    _register(name, kind, stages) for kind in (MixStyle, EFDMix) for name in MIXED for stages in (1, 2, 3)
]
globals().update({build.__name__: build for build in FACTORIES})
