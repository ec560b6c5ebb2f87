"""AutoAugment's published policies (Cubuk et al., CVPR 2019): 25 sub-policies each, gray fill. By torchvision."""

from __future__ import annotations

from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(
    __name__, np="numpy", random="random", Image="PIL.Image", ImageOps="PIL.ImageOps", ImageEnhance="PIL.ImageEnhance"
)


class ImageNetPolicy(AutoAugment):
    """The policy found on ImageNet.

    Args:
        fillcolor: Colour of pixels from outside the image.
    """

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__(AutoAugmentPolicy.IMAGENET, fill=list(fillcolor))


class CIFAR10Policy(AutoAugment):
    """The policy found on CIFAR-10.

    Args:
        fillcolor: Colour of pixels from outside the image.
    """

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__(AutoAugmentPolicy.CIFAR10, fill=list(fillcolor))


class SVHNPolicy(AutoAugment):
    """The policy found on SVHN.

    Args:
        fillcolor: Colour of pixels from outside the image.
    """

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__(AutoAugmentPolicy.SVHN, fill=list(fillcolor))
