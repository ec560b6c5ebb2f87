"""Optimizers by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from yacs.config import CfgNode

from .radam import RAdam

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable | None = None
) -> torch.optim.Optimizer:
    """Makes the optimizer that a configuration names.

    Args:
        model: A module (all of its parameters, frozen ones too), or an iterable of parameters or groups.
        optim_cfg: The node `cfg.OPTIM`.
        param_groups: Takes the place of `model`; STAGED_LR is then ignored, with a warning.

    Raises:
        ValueError: The name is unknown.
        TypeError: STAGED_LR without a module.
    """
    if optim_cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"optim must be one of {AVAI_OPTIMS}, but got {optim_cfg.NAME}")
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("STAGED_LR is ignored, since param_groups are given", stacklevel=2)
        params = param_groups
    elif optim_cfg.STAGED_LR:
        params = _staged_groups(model, optim_cfg)
    else:
        params = model.parameters() if isinstance(model, nn.Module) else model

    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = {"betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)}
    name = optim_cfg.NAME
    if name == "adam":
        return torch.optim.Adam(params, **common, **betas)
    if name == "amsgrad":
        return torch.optim.Adam(params, **common, **betas, amsgrad=True)
    if name == "adamw":
        return torch.optim.AdamW(params, **common, **betas)
    if name == "radam":
        return RAdam(params, **common, **betas)
    if name == "rmsprop":
        return torch.optim.RMSprop(params, **common, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA)
    return torch.optim.SGD(
        params,
        **common,
        momentum=optim_cfg.MOMENTUM,
        dampening=optim_cfg.SGD_DAMPNING,
        nesterov=optim_cfg.SGD_NESTEROV,
    )


def _staged_groups(model: nn.Module, optim_cfg: CfgNode) -> list[dict]:
    """Two groups: what is not named in NEW_LAYERS, at LR x BASE_LR_MULT, and the named direct children, at LR."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"With STAGED_LR, the model given to build_optimizer() must be an instance of nn.Module, not {type(model)}"
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    if not optim_cfg.NEW_LAYERS:
        warnings.warn("NEW_LAYERS is empty: STAGED_LR lowers the rate of every layer", stacklevel=3)
    names = [optim_cfg.NEW_LAYERS] if isinstance(optim_cfg.NEW_LAYERS, str) else list(optim_cfg.NEW_LAYERS)
    children = [name for name, _ in model.named_children()]
    unknown = [name for name in names if name and name not in children]
    if unknown:
        warnings.warn(f"NEW_LAYERS names {unknown}, but the model's children are {children}", stacklevel=3)
    base, new = [], []
    for key, parameter in model.named_parameters():
        (new if key.split(".")[0] in names else base).append(parameter)
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
