"""The convolutional network of single-source digits, for 32x32 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.utils import init_network_weights

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .cnn_digitsdg import check_size


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
        check_size(x)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.fc4(F.relu(self.fc3(x.flatten(1)))))


@BACKBONE_REGISTRY.register()
def cnn_digitsingle(**kwargs) -> DigitSingleNet:
    """The backbone of single-source digits: 1024 features."""
    net = DigitSingleNet()
    init_network_weights(net, init_type="kaiming")
    return net
