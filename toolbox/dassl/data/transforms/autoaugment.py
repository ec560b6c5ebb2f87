"""AutoAugment's published policies (Cubuk et al., CVPR 2019): 25 sub-policies each, gray fill. By torchvision."""

from __future__ import annotations

from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(
    __name__, np="numpy", random="random", Image="PIL.Image", ImageOps="PIL.ImageOps", ImageEnhance="PIL.ImageEnhance"
)


class _Policy(AutoAugment):
    """A published policy.

    Args:
        fillcolor: Colour of pixels from outside the image.
    """

    published: AutoAugmentPolicy

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__(self.published, fill=list(fillcolor))


class ImageNetPolicy(_Policy):
    """The policy found on ImageNet."""

    published = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """The policy found on CIFAR-10."""

    published = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """The policy found on SVHN."""

    published = AutoAugmentPolicy.SVHN
