"""What operations that mix the statistics of images share: when they act, and which image is mixed with which."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Mixing(nn.Module):
    """In training, mixes each image of a batch with another one. A subclass says how: `mix_with`.

    Args:
        p: Probability of mixing a batch.
        alpha: Parameter of the Beta distribution of the weights.
        eps: Keeps deviations away from zero.
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
        return f"{type(self).__name__}(p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix})"

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
        weight = self.beta.sample((len(x), 1, 1, 1)).to(x)
        return self.mix_with(x, self._partners(len(x)).to(x.device), weight)

    def mix_with(self, x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """Mixes images [B, C, H, W] with those at the indices `partner` [B]; `weight` [B, 1, 1, 1] is their own."""
        raise NotImplementedError

    def _partners(self, size: int) -> Tensor:
        if self.mix == "random":
            return torch.randperm(size)
        if self.mix == "crossdomain":
            second, first = torch.arange(size - 1, -1, -1).chunk(2)
            return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])
        raise NotImplementedError(f'mix must be "random" or "crossdomain", but got "{self.mix}"')


def make_switches(kind: type[Mixing]) -> tuple[Callable, ...]:
    """What switches all modules of a kind.

    Returns:
        For `model.apply`: on, off, partners are any other images, partners are images of the other half of the batch.
        For a `with` statement on a model: on for the block and off after it (`mix` says how partners are chosen; None
        leaves that as it is), and off for the block and on after it.
    """

    def for_apply(switch: Callable[[Mixing], None]) -> Callable[[nn.Module], None]:
        return lambda module: switch(module) if isinstance(module, kind) else None

    @contextmanager
    def within(model: nn.Module, status: bool, mix: str | None = None) -> Iterator[None]:
        modules = [module for module in model.modules() if isinstance(module, kind)]
        for module in modules:
            module.set_activation_status(status)
            module.update_mix_method(mix or module.mix)
        try:
            yield
        finally:
            for module in modules:
                module.set_activation_status(not status)

    return (
        for_apply(lambda module: module.set_activation_status(True)),
        for_apply(lambda module: module.set_activation_status(False)),
        for_apply(lambda module: module.update_mix_method("random")),
        for_apply(lambda module: module.update_mix_method("crossdomain")),
        lambda model, mix=None: within(model, True, mix),
        lambda model: within(model, False),
    )
