"""MixStyle (Zhou et al., "Domain Generalization with MixStyle", ICLR 2021)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MixStyle(nn.Module):
    """In training, mixes the mean and the deviation of each channel with those of another image of the batch.

    Args:
        p: Probability of mixing a batch.
        alpha: Parameter of the Beta distribution of the weights.
        eps: Added to the variance.
        mix: "random": any other image; "crossdomain": an image of the other half of the batch.

    Raises:
        NotImplementedError: Another `mix`, when a batch is mixed.
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, mix: str = "random") -> None:
        super().__init__()
        self.p = p
        self.alpha = alpha
        self.eps = eps
        self.mix = mix
        self.beta = torch.distributions.Beta(alpha, alpha)
        self._activated = True

    def __repr__(self) -> str:
        return f"MixStyle(p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix})"

    def set_activation_status(self, status: bool = True) -> None:
        """Switches the module on or off."""
        self._activated = status

    def update_mix_method(self, mix: str = "random") -> None:
        """Sets how partners are chosen."""
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        mean = x.mean((2, 3), keepdim=True).detach()  # [B, C, 1, 1]
        std = (x.var((2, 3), keepdim=True) + self.eps).sqrt().detach()
        normed = (x - mean) / std
        weight = self.beta.sample((len(x), 1, 1, 1)).to(x)
        partner = self._partners(len(x)).to(x.device)
        mixed_mean = mean * weight + mean[partner] * (1 - weight)
        mixed_std = std * weight + std[partner] * (1 - weight)
        return normed * mixed_std + mixed_mean

    def _partners(self, size: int) -> Tensor:
        if self.mix == "random":
            return torch.randperm(size)
        if self.mix == "crossdomain":
            second, first = torch.arange(size - 1, -1, -1).chunk(2)
            return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])
        raise NotImplementedError(f'mix must be "random" or "crossdomain", but got "{self.mix}"')


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
    if mix is not None:
        model.apply(crossdomain_mixstyle if mix == "crossdomain" else random_mixstyle)
    model.apply(activate_mixstyle)
    try:
        yield
    finally:
        model.apply(deactivate_mixstyle)


@contextmanager
def run_without_mixstyle(model: nn.Module) -> Iterator[None]:
    """Switches MixStyle off for the block, and on after it."""
    model.apply(deactivate_mixstyle)
    try:
        yield
    finally:
        model.apply(activate_mixstyle)
