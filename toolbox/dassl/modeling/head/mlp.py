"""A stack of fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .build import HEAD_REGISTRY

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


@HEAD_REGISTRY.register()
def mlp(
    in_features: int = 2048,
    hidden_layers: int | Sequence[int] = (),
    activation: str = "relu",
    bn: bool = True,
    dropout: float = 0.0,
    **kwargs,
) -> nn.Sequential:
    """Linear, batch normalisation, activation and dropout for each hidden width.

    Args:
        in_features: Width of the input.
        hidden_layers: Width or widths.
        activation: relu or leaky_relu.
        bn: Whether to normalise.
        dropout: Probability; 0 leaves the layer out.

    Returns:
        A module with the attribute `out_features`.

    Raises:
        ValueError: Another activation, or no hidden width.
    """
    widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
    if not widths:
        raise ValueError("mlp needs at least one hidden width, but hidden_layers is empty")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, but got {activation}")
    layers: list[nn.Module] = []
    for before, width in zip([in_features, *widths], widths):
        layers.append(nn.Linear(before, width))
        if bn:
            layers.append(nn.BatchNorm1d(width))
        layers.append(ACTIVATIONS[activation](inplace=True))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    net = nn.Sequential(*layers)
    net.out_features = widths[-1]
    return net
