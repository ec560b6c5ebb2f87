"""RAdam (Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020), on torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, math="math", Optimizer="torch.optim:Optimizer", AdamW="torch.optim:AdamW")


class RAdam(torch.optim.RAdam):
    """torch's RAdam with decoupled weight decay, as in the authors' program.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
        degenerated_to_sgd: Part of the interface; steps without a tractable variance use the momentum alone.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=True)
        self.degenerated_to_sgd = degenerated_to_sgd
