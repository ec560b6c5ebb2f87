"""MixStyle (Zhou et al., "Domain Generalization with MixStyle", ICLR 2021)."""

from __future__ import annotations

from torch import Tensor

from dassl.utils.on_demand import import_on_demand

from .mixing import Mixing, make_switches

__getattr__ = import_on_demand(
    __name__, random="random", contextmanager="contextlib:contextmanager", torch="torch", nn="torch.nn"
)


class MixStyle(Mixing):
    """In training, mixes the mean and the deviation of each channel with those of another image of the batch.

    The arguments are those of `Mixing`.
    """

    def mix_with(self, x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; no gradient flows through the statistics."""
        mean = x.mean((2, 3), keepdim=True).detach()  # [B, C, 1, 1]
        std = (x.var((2, 3), keepdim=True) + self.eps).sqrt().detach()
        mixed_mean = mean * weight + mean[partner] * (1 - weight)
        mixed_std = std * weight + std[partner] * (1 - weight)
        return (x - mean) / std * mixed_std + mixed_mean


(
    activate_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    crossdomain_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
) = make_switches(MixStyle)
