"""Residual networks (He et al., CVPR 2016) by torchvision, without their classifier, with MixStyle inside if asked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dassl.modeling.ops import MixStyle

from .backbone import Backbone
from .build import BACKBONE_REGISTRY


class ResNet(Backbone):
    """A torchvision network up to its global average.

    Args:
        net: The torchvision network; its layers are taken over.
        ms_layers: Stages ("layer1" to "layer3") whose output MixStyle mixes.
        ms_p: Probability of MixStyle.
        ms_a: Parameter of its Beta distribution.
    """

    def __init__(self, net: nn.Module, ms_layers: Sequence[str] = (), ms_p: float = 0.5, ms_a: float = 0.1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.mixstyle = MixStyle(p=ms_p, alpha=ms_a, mix="random") if ms_layers else None
        self.ms_layers = list(ms_layers)
        self._out_features = net.fc.in_features

    def featuremaps(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_features, H / 32, W / 32]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            if name in self.ms_layers:
                x = self.mixstyle(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        return self.global_avgpool(self.featuremaps(x)).flatten(1)


def _build(name: str, pretrained: bool, ms_layers: Sequence[str] = ()) -> ResNet:
    """Makes a network, with torchvision's ImageNet weights if `pretrained`.

    Raises:
        OSError: The weights are not on this machine and cannot be fetched.
    """
    from torchvision import models

    try:
        net = getattr(models, name)(weights="IMAGENET1K_V1" if pretrained else None)
    except OSError as error:
        raise OSError(
            f"The ImageNet weights of {name} are not on this machine and cannot be fetched ({error}). Put torchvision's"
            " file into the checkpoint folder of torch.hub, or set MODEL.BACKBONE.PRETRAINED False"
        ) from error
    return ResNet(net, ms_layers)


@BACKBONE_REGISTRY.register()
def resnet18(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-18: 512 features."""
    return _build("resnet18", pretrained)


@BACKBONE_REGISTRY.register()
def resnet34(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-34: 512 features."""
    return _build("resnet34", pretrained)


@BACKBONE_REGISTRY.register()
def resnet50(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-50: 2048 features."""
    return _build("resnet50", pretrained)


@BACKBONE_REGISTRY.register()
def resnet101(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-101: 2048 features."""
    return _build("resnet101", pretrained)


@BACKBONE_REGISTRY.register()
def resnet152(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-152: 2048 features."""
    return _build("resnet152", pretrained)


@BACKBONE_REGISTRY.register()
def resnet18_ms_l1(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-18 with MixStyle after the first stage."""
    return _build("resnet18", pretrained, ["layer1"])


@BACKBONE_REGISTRY.register()
def resnet18_ms_l12(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-18 with MixStyle after the first two stages."""
    return _build("resnet18", pretrained, ["layer1", "layer2"])


@BACKBONE_REGISTRY.register()
def resnet18_ms_l123(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-18 with MixStyle after the first three stages."""
    return _build("resnet18", pretrained, ["layer1", "layer2", "layer3"])


@BACKBONE_REGISTRY.register()
def resnet50_ms_l1(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-50 with MixStyle after the first stage."""
    return _build("resnet50", pretrained, ["layer1"])


@BACKBONE_REGISTRY.register()
def resnet50_ms_l12(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-50 with MixStyle after the first two stages."""
    return _build("resnet50", pretrained, ["layer1", "layer2"])


@BACKBONE_REGISTRY.register()
def resnet50_ms_l123(pretrained: bool = True, **kwargs) -> ResNet:
    """ResNet-50 with MixStyle after the first three stages."""
    return _build("resnet50", pretrained, ["layer1", "layer2", "layer3"])
