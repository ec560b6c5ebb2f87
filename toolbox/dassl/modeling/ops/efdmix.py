"""EFDMix: exact matching of feature distributions (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dassl.utils.on_demand import import_on_demand

from .mixing import Mixing, activation

__getattr__ = import_on_demand(__name__, random="random", torch="torch")


class EFDMix(Mixing):
    """In training, mixes the values of each channel, in sorted order, with those of another image of the batch.

    Args:
        p: Probability of mixing a batch.
        alpha: Parameter of the Beta distribution of the weights.
        eps: Part of the interface, without effect.
        mix: "random": any other image; "crossdomain": an image of the other half of the batch.

    Raises:
        NotImplementedError: Another `mix`, when a batch is mixed.
    """

    def mix_with(self, x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; to an image's own values the gradient is that of the identity."""
        own = x.flatten(2)  # [B, C, H * W]
        values, order = own.sort(-1)
        matched = values[partner].gather(-1, order.argsort(-1))  # the partner's k-th value where the own k-th one lies
        return (own + (matched - own.detach()) * (1 - weight.flatten(2))).view_as(x)


def activate_efdmix(module: nn.Module) -> None:
    """For `model.apply`: switches EFDMix on."""
    if isinstance(module, EFDMix):
        module.set_activation_status(True)


def deactivate_efdmix(module: nn.Module) -> None:
    """For `model.apply`: switches EFDMix off."""
    if isinstance(module, EFDMix):
        module.set_activation_status(False)


def random_efdmix(module: nn.Module) -> None:
    """For `model.apply`: partners are any other images."""
    if isinstance(module, EFDMix):
        module.update_mix_method("random")


def crossdomain_efdmix(module: nn.Module) -> None:
    """For `model.apply`: partners are images of the other half of the batch."""
    if isinstance(module, EFDMix):
        module.update_mix_method("crossdomain")


@contextmanager
def run_with_efdmix(model: nn.Module, mix: str | None = None) -> Iterator[None]:
    """Switches EFDMix on for the block, and off after it.

    Args:
        model: The model.
        mix: How partners are chosen; None leaves that as it is.
    """
    with activation(model, EFDMix, True, mix):
        yield


@contextmanager
def run_without_efdmix(model: nn.Module) -> Iterator[None]:
    """Switches EFDMix off for the block, and on after it."""
    with activation(model, EFDMix, False):
        yield
