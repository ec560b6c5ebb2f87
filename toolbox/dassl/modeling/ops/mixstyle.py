"""MixStyle (Zhou et al., "Domain Generalization with MixStyle", ICLR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dassl.utils.on_demand import import_on_demand

from .mixing import Mixing, activation

__getattr__ = import_on_demand(__name__, random="random", torch="torch")


class MixStyle(Mixing):
    """In training, mixes the mean and the deviation of each channel with those of another image of the batch.

    Args:
        p: Probability of mixing a batch.
        alpha: Parameter of the Beta distribution of the weights.
        eps: Added to the variance.
        mix: "random": any other image; "crossdomain": an image of the other half of the batch.

    Raises:
        NotImplementedError: Another `mix`, when a batch is mixed.
    """

    def mix_with(self, x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; no gradient flows through the statistics."""
        mean = x.mean((2, 3), keepdim=True).detach()  # [B, C, 1, 1]
        std = (x.var((2, 3), keepdim=True) + self.eps).sqrt().detach()
        mixed_mean = mean * weight + mean[partner] * (1 - weight)
        mixed_std = std * weight + std[partner] * (1 - weight)
        return (x - mean) / std * mixed_std + mixed_mean


def activate_mixstyle(module: nn.Module) -> None:
    """For `model.apply`: switches MixStyle on."""
    if isinstance(module, MixStyle):
        module.set_activation_status(True)


def deactivate_mixstyle(module: nn.Module) -> None:
    """For `model.apply`: switches MixStyle off."""
    if isinstance(module, MixStyle):
        module.set_activation_status(False)


def random_mixstyle(module: nn.Module) -> None:
    """For `model.apply`: partners are any other images."""
    if isinstance(module, MixStyle):
        module.update_mix_method("random")


def crossdomain_mixstyle(module: nn.Module) -> None:
    """For `model.apply`: partners are images of the other half of the batch."""
    if isinstance(module, MixStyle):
        module.update_mix_method("crossdomain")


@contextmanager
def run_with_mixstyle(model: nn.Module, mix: str | None = None) -> Iterator[None]:
    """Switches MixStyle on for the block, and off after it.

    Args:
        model: The model.
        mix: How partners are chosen; None leaves that as it is.
    """
    with activation(model, MixStyle, True, mix):
        yield


@contextmanager
def run_without_mixstyle(model: nn.Module) -> Iterator[None]:
    """Switches MixStyle off for the block, and on after it."""
    with activation(model, MixStyle, False):
        yield
