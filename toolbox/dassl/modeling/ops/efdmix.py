"""EFDMix: exact matching of feature distributions (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from dassl.utils.on_demand import import_on_demand

from .mixing import Mixing, make_switches

__getattr__ = import_on_demand(
    __name__, random="random", contextmanager="contextlib:contextmanager", torch="torch", nn="torch.nn"
)


class EFDMix(Mixing):
    """In training, mixes the values of each channel, in sorted order, with those of another image of the batch.

    The arguments are those of `Mixing`; `eps` is without effect.
    """

    def mix_with(self, x: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; to an image's own values the gradient is that of the identity."""
        own = x.flatten(2)  # [B, C, H * W]
        values, order = own.sort(-1)
        matched = values[partner].gather(-1, order.argsort(-1))  # the partner's k-th value where the own k-th one lies
        return (own + (matched - own.detach()) * (1 - weight.flatten(2))).view_as(x)


activate_efdmix, deactivate_efdmix, random_efdmix, crossdomain_efdmix, run_with_efdmix, run_without_efdmix = (
    make_switches(EFDMix)
)
