"""Checkpoints, partial weights, frozen layers and initialisation of torch modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn import init

from .checkpoints import load_checkpoint, resume_from_checkpoint, save_checkpoint, strip_module  # noqa: F401
from .errors import CheckError
from .on_demand import import_on_demand

__getattr__ = import_on_demand(
    __name__,
    pickle="pickle",
    partial="functools:partial",
    OrderedDict="collections:OrderedDict",
    osp="os.path",
    torch="torch",
    mkdir_if_missing=".tools:mkdir_if_missing",
)


def open_all_layers(model: nn.Module) -> None:
    """Makes every parameter trainable and sets training mode."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad = True


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Makes the named direct children trainable and freezes the others, in evaluation mode.

    Raises:
        AssertionError: A name is no attribute of the model.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in names:
        if not hasattr(model, name):
            raise CheckError(f'"{name}" is not an attribute of {type(model).__name__}; its layers: {list(children)}')
    for name, module in children.items():
        module.train(name in names)
        for parameter in module.parameters():
            parameter.requires_grad = name in names


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Number of elements in a model's parameters, or in an iterable of parameters or groups.

    Raises:
        ValueError: Neither is given.
    """
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params, but both are None")
    groups = (item["params"] if isinstance(item, dict) else [item] for item in params)
    return sum(parameter.numel() for group in groups for parameter in group)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Loads the entries of a file whose name and size fit the model; warns when none does.

    Args:
        model: The model.
        weight_path: A checkpoint, or a file that is itself a state dict; a leading "module." in its keys is ignored.
    """
    checkpoint = load_checkpoint(weight_path)
    state_dict = strip_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = {key: value for key, value in state_dict.items() if key in own and own[key].shape == value.shape}
    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
        return
    model.load_state_dict({**own, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in state_dict if key not in matched]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialises the linear, convolutional and normalising layers of a model.

    Args:
        model: The model.
        init_type: normal, xavier, kaiming or orthogonal.
        gain: Standard deviation (normal) or gain (xavier, orthogonal).

    Raises:
        NotImplementedError: Another `init_type`.
    """
    fills = {
        "normal": lambda weight: init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: init.orthogonal_(weight, gain=gain),
    }
    if init_type not in fills:
        raise NotImplementedError(f"Initialization method {init_type} is not implemented; available: {list(fills)}")

    def fill(module: nn.Module) -> None:
        kind = type(module).__name__
        if isinstance(module, nn.Linear) or kind.startswith("Conv"):
            if getattr(module, "weight", None) is not None:
                fills[init_type](module.weight)
        elif kind.startswith(("BatchNorm", "InstanceNorm")) and getattr(module, "weight", None) is not None:
            init.constant_(module.weight, 1.0)
        else:
            return
        if getattr(module, "bias", None) is not None:
            init.constant_(module.bias, 0.0)

    model.apply(fill)
