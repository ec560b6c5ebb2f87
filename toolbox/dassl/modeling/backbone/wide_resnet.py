"""Wide residual networks (Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.utils.on_demand import import_on_demand

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__getattr__ = import_on_demand(__name__, torch="torch")

LEAK = 0.01


class WideBlock(nn.Module):
    """Normalisation, activation and convolution, twice, beside a shortcut.

    Args:
        before: Input channels.
        width: Output channels.
        stride: Stride of the first convolution.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None if before == width else nn.Conv2d(before, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, width, H / stride, W / stride]."""
        opened = F.leaky_relu(self.bn1(x), LEAK)
        out = self.conv2(F.leaky_relu(self.bn2(self.conv1(opened)), LEAK))
        return out + (x if self.shortcut is None else self.shortcut(opened))


class WideResNet(Backbone):
    """Three stages of wide blocks and a global average.

    Args:
        depth: Number of layers, 6 n + 4.
        widen_factor: Multiplies the channels 16, 32, 64.
    """

    def __init__(self, depth: int, widen_factor: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for before, width, stride in zip(widths, widths[1:], (1, 2, 2)):
            rest = (WideBlock(width, width, 1) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(WideBlock(before, width, stride), *rest))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self._out_features = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        x = F.leaky_relu(self.bn1(self.stages(self.conv1(x))), LEAK)
        return x.mean((2, 3))


@BACKBONE_REGISTRY.register()
def wide_resnet_16_4(**kwargs) -> WideResNet:
    """16 layers, widened 4 times: 256 features."""
    return WideResNet(16, 4)


@BACKBONE_REGISTRY.register()
def wide_resnet_28_2(**kwargs) -> WideResNet:
    """28 layers, widened 2 times: 128 features."""
    return WideResNet(28, 2)
