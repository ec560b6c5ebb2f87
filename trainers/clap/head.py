"""CLAP's content head, and the authors' checkpoints of it.

Source: Cai et al., "CLAP: Isolating Content from Style through Contrastive Learning with Augmented Prompts", ECCV 2024
(arXiv 2311.16445). The head is trained on text features alone and read on image and text features.

Shapes: `E` joint embedding.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

TRAINING_ALPHA = 1.0
NETWORK = "network_beta"  # the text-trained head in the authors' state dicts
NETWORKS = (NETWORK, "network_psi")
HEAD_KEYS = ("linear.weight", "linear.bias", "projection.weight")


class ContentHead(nn.Module):
    """`z = x + alpha * P(A(SiLU(x)))`: the identity at the start, since `P` starts at zero.

    Args:
        embed_dim: `E`.
        latent_dim: Width between `A` (`linear`, with bias) and `P` (`projection`, without).
        alpha: The factor of `forward`. Training passes `TRAINING_ALPHA` in its place, whatever this value is.
    """

    def __init__(self, embed_dim: int, latent_dim: int, alpha: float = 1.0):
        super().__init__()
        self.alpha = float(alpha)
        self.linear = nn.Linear(embed_dim, latent_dim)
        self.projection = nn.Linear(latent_dim, embed_dim, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, x: Tensor, alpha: float | None = None) -> Tensor:
        """Content features of CLIP features, in the head's own precision also under autocast.

        Args:
            x: CLIP features `[..., E]`, not normalised.
            alpha: Takes the place of the head's own `alpha`.

        Returns:
            `[..., E]`, not normalised.
        """
        alpha = self.alpha if alpha is None else alpha
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.linear.weight.dtype)
            shift: Tensor = self.projection(self.linear(F.silu(x)))
            return x + alpha * shift


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the authors' names."""
    return any(_plain_key(key).startswith(f"{network}.") for key in state for network in NETWORKS)


def published_network(state: Mapping[str, Tensor]) -> str:
    """The network of a state dict of the authors that was trained.

    Training on texts leaves `network_psi` as it starts, with a projection that is all zero; training on images (Im.Aug)
    leaves `network_beta` so.

    Returns:
        The first that is there and has another projection; without one, the first that is there.

    Raises:
        UserError: As in `published_state`.
    """
    named = {_plain_key(key): value for key, value in state.items()}
    there = [network for network in NETWORKS if any(key.startswith(f"{network}.") for key in named)] or [NETWORK]
    trained = (network for network in there if _head(named, network)[HEAD_KEYS[2]].any())
    return next(trained, there[0])


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head (of `published_network`) inside a state dict of the authors, under this module's names, float32.

    Args:
        state: Keys `network_beta.linear.{weight,bias}` and `network_beta.projection.weight`, and the same under
            `network_psi`, perhaps behind `module.`.

    Returns:
        `linear.weight [latent, E]`, `linear.bias [latent]`, `projection.weight [E, latent]`.

    Raises:
        UserError: Keys are missing, their shapes do not fit each other, or the head is not trained.
    """
    head = _head({_plain_key(key): value for key, value in state.items()}, published_network(state))
    check_trained(head)
    return head


def _head(named: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """One head of a state dict, once it is whole."""
    wanted = {key: f"{network}.{key}" for key in HEAD_KEYS}
    missing = [name for name in wanted.values() if name not in named]
    if missing:
        found = ", ".join(sorted(named)[:8]) + (", ..." if len(named) > 8 else "")
        raise UserError(
            f"not a checkpoint of CLAP's authors: {', '.join(missing)} missing; expected "
            f"{', '.join(wanted.values())}; it has {found or 'no keys at all'}"
        )
    head = {key: named[name].detach().float() for key, name in wanted.items()}
    head_widths(head)
    return head


def check_trained(state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a head's state dict has a projection that is all zero, as before any training."""
    if not state[HEAD_KEYS[2]].any():
        raise UserError(
            "the checkpoint's content head is not trained: its projection is all zero, so it returns CLIP's own "
            "features; take the checkpoint of a trained head, or train one (TRAINER.CLAP.MAX_STEPS above 0)"
        )


def head_widths(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """`E` and the latent width of a `ContentHead`'s state dict.

    Raises:
        UserError: Keys are missing, or the shapes do not fit each other.
    """
    missing = [key for key in HEAD_KEYS if key not in state]
    if missing:
        raise UserError(f"a content head has {', '.join(HEAD_KEYS)}; missing: {', '.join(missing)}")
    shapes = [tuple(state[key].shape) for key in HEAD_KEYS]
    latent, embed_dim = shapes[0] if len(shapes[0]) == 2 else (0, 0)
    if shapes != [(latent, embed_dim), (latent,), (embed_dim, latent)]:
        raise UserError(
            "a content head has shapes [latent, E], [latent] and [E, latent] for "
            f"{', '.join(HEAD_KEYS)}; got {', '.join(str(list(shape)) for shape in shapes)}"
        )
    return embed_dim, latent


def check_widths(state: Mapping[str, Tensor], embed_dim: int, latent_dim: int) -> None:
    """Raise a ValueError unless a head's state dict fits features of `embed_dim` and a head of `latent_dim`."""
    given = head_widths(state)
    if given[0] != embed_dim:
        raise UserError(
            f"the checkpoint's content head is for features of width {given[0]}, but this backbone's have width "
            f"{embed_dim}; take the backbone that it was trained with, or the checkpoint of this one"
        )
    if given[1] != latent_dim:
        raise UserError(
            f"the checkpoint's content head has a latent width of {given[1]}, but {latent_dim} is configured; "
            f"set it to {given[1]}"
        )


def _plain_key(key: str) -> str:
    """A key without the `module` parts that data-parallel wrappers add."""
    return ".".join(part for part in key.split(".") if part != "module")
