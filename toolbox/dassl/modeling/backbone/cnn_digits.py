"""Small convolutional networks for digits of 32x32 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.utils import init_network_weights
from dassl.utils.errors import CheckError

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

SIDE = 32


def _check_size(x: Tensor) -> None:
    if x.shape[-2:] != (SIDE, SIDE):
        raise CheckError(f"This backbone takes images of {SIDE}x{SIDE} pixels, but got {tuple(x.shape[-2:])}")


class DigitsDGNet(Backbone):
    """Four convolutions, each followed by ReLU and max-pooling (Zhou et al., AAAI 2020).

    Args:
        width: Channels of each convolution.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(before, width, 3, padding=1) for before in (3, width, width, width))
        self._out_features = (SIDE // 2 ** len(self.convs)) ** 2 * width

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> [B, out_features]."""
        _check_size(x)
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return x.flatten(1)


class DigitSingleNet(Backbone):
    """Two convolutions and two fully connected layers (Volpi et al., NeurIPS 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 5)
        self.conv2 = nn.Conv2d(64, 128, 5)
        self.fc3 = nn.Linear(5 * 5 * 128, 1024)
        self.fc4 = nn.Linear(1024, 1024)
        self._out_features = 1024

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> [B, 1024]."""
        _check_size(x)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.fc4(F.relu(self.fc3(x.flatten(1)))))


@BACKBONE_REGISTRY.register()
def cnn_digitsdg(**kwargs) -> DigitsDGNet:
    """The backbone of Digits-DG: 256 features."""
    net = DigitsDGNet()
    init_network_weights(net, init_type="kaiming")
    return net


@BACKBONE_REGISTRY.register()
def cnn_digitsingle(**kwargs) -> DigitSingleNet:
    """The backbone of single-source digits: 1024 features."""
    net = DigitSingleNet()
    init_network_weights(net, init_type="kaiming")
    return net
