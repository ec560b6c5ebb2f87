"""The convolutional network of Digits-DG, for 32x32 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.utils import init_network_weights
from dassl.utils.errors import CheckError

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

SIDE = 32


def check_size(x: Tensor) -> None:
    """Raises an AssertionError for images that are not of 32x32 pixels."""
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
        check_size(x)
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return x.flatten(1)


@BACKBONE_REGISTRY.register()
def cnn_digitsdg(**kwargs) -> DigitsDGNet:
    """The backbone of Digits-DG: 256 features."""
    net = DigitsDGNet()
    init_network_weights(net, init_type="kaiming")
    return net
