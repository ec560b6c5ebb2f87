"""Image towers that are learned whole, with a linear head; parameters by depth; weights between start and end.

The tower is a copy of CLIP's, in evaluation mode also in training: batch statistics of a ResNet stay CLIP's own.

Shapes: `B` images, `E` features, `C` classes.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

from .backbone import FrozenCLIP
from .text_blocks import encode_ids

Pixels = tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet's pixels
_DEPTH = re.compile(r"(?:resblocks|blocks|stages)\.(\d+)\.|layer(\d+)\.")
_LAST = re.compile(r"(?:ln_post|proj|attn_?pool|norm|head|trunk\.(?:norm|fc_norm|head))\b")


def copied_tower(model: nn.Module) -> nn.Module:
    """A copy of the image tower of an open_clip model, whose parameters are learned, in evaluation mode."""
    tower = copy.deepcopy(model.get_submodule("visual"))
    return tower.requires_grad_(True).eval()


class LearnedTower(nn.Module):
    """An image tower that is learned.

    Args:
        tower: Images `[B, ...]` to features `[B, E]`.
        pixels: The mean and deviation that images are normalised by where they arrive, and those that the tower is to
            get, each three numbers; None: the same.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, tower: nn.Module, pixels: Pixels | None = None):
        super().__init__()
        self.tower = tower
        self.changes_pixels = pixels is not None
        if pixels is not None:
            (mean, std), (new_mean, new_std) = (torch.tensor(pair).view(2, 3, 1, 1) for pair in pixels)
            self.register_buffer("_scale", std / new_std, persistent=False)
            self.register_buffer("_shift", (mean - new_mean) / new_std, persistent=False)

    def train(self, mode: bool = True) -> "LearnedTower":
        """Stay in evaluation mode: batch statistics are CLIP's."""
        super().train(False)
        return self

    def with_statistics(self, images: Tensor) -> Tensor:
        """Images as the tower gets them, of images as they arrive; a ResNet is faster with its channels last."""
        images = images * self._scale + self._shift if self.changes_pixels else images
        return images.contiguous(memory_format=torch.channels_last) if hasattr(self.tower, "layer4") else images

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]`, float32, not normalised, of images as they arrive."""
        out: Any = self.tower(self.with_statistics(images))
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features.float()


class FineTuned(LearnedTower):
    """An image tower and a linear head on its features.

    Args:
        tower: Learned.
        weight: Of the head, `[C, E]`.
        learned_head: Whether the head is learned, with a bias that starts at 0; otherwise it is `weight`, is saved in
            no checkpoint, and has no bias.
        normalize: Whether the head reads features of length 1.
        dropout: Share of the features that training sets to zero.
        pixels: See `LearnedTower`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        tower: nn.Module,
        weight: Tensor,
        learned_head: bool = True,
        normalize: bool = True,
        dropout: float = 0.0,
        pixels: Pixels | None = None,
    ):
        super().__init__(tower, pixels)
        self.normalize, self.dropout = normalize, nn.Dropout(dropout)
        weight = weight.detach().float().clone()
        if learned_head:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(weight.new_zeros(len(weight)))
        else:
            self.register_buffer("weight", weight, persistent=False)
            self.bias = None

    def train(self, mode: bool = True) -> "FineTuned":
        """Training mode is for the dropout before the head alone."""
        super().train(mode)
        self.dropout.train(mode)
        return self

    def head(self, features: Tensor) -> Tensor:
        """Logits `[B, C]`, float32, of features `[B, E]` of `encode`."""
        features = F.normalize(features, dim=-1) if self.normalize else features
        return F.linear(self.dropout(features), self.weight, self.bias)


class LearnedCLIP(LearnedTower):
    """Copies of both towers of a CLIP and of its logit scale, all learned.

    Args:
        clip: The frozen CLIP; it stays as it is.
        tower: The image tower, a copy of CLIP's.
        pixels: See `LearnedTower`.

    Raises:
        UserError: The text tower is of a kind that is not known.
    """

    def __init__(self, clip: FrozenCLIP, tower: nn.Module, pixels: Pixels | None = None):
        super().__init__(tower, pixels)
        if not clip.text.causal:
            raise UserError(
                f"the text tower of {clip.name} cannot be learned here: it is no causal transformer of open_clip's "
                "kind; take a CLIP with one, such as OpenAI's models, or a method that learns the image tower alone"
            )
        skipped = {id(visual): visual for visual in (clip.model.get_submodule("visual"),)}  # not copied again
        self.text = copy.deepcopy(clip.text, skipped).requires_grad_(True)
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().log().clone())

    @property
    def scale(self) -> Tensor:
        """The factor on cosines, a scalar."""
        return self.logit_scale.exp()

    def encode_text(self, ids: Tensor) -> Tensor:
        """Features `[K, E]`, float32, not normalised, of token ids `[K, T]`, with gradients to the text tower."""
        return encode_ids(self.text, ids, self.text.transformer.resblocks)


def fresh_head(classes: int, width: int) -> Tensor:
    """Weights `[C, E]` as a new linear layer draws them."""
    return nn.Linear(width, classes).weight.detach()


def checkpoint_activations(tower: nn.Module, name: str) -> None:
    """Compute the activations of the tower's blocks again in the backward pass, in place of keeping them.

    Raises:
        UserError: The tower has no blocks that can be.
    """
    blocks = hasattr(getattr(tower, "transformer", None), "resblocks") or hasattr(tower, "trunk")
    if not blocks:
        raise UserError(
            f"the image tower of {name} ({type(tower).__name__}) has no transformer blocks, whose activations alone "
            "can be computed again: set GRADIENT_CHECKPOINTING False"
        )
    tower.get_submodule("").set_grad_checkpointing(True)  # type: ignore[operator]


def depth_of(name: str) -> int:
    """Depth of a parameter of a tower, by its name: 0 before the blocks, 1 in the first one, -1 behind the last one."""
    found = _DEPTH.search(name)
    if found:
        return int(found[1]) + 1 if found[1] is not None else int(found[2])
    return -1 if _LAST.search(name) else 0


def by_depth(
    parameters: Iterator[tuple[str, nn.Parameter]] | Sequence[tuple[str, nn.Parameter]], decay: float
) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters by factor on the rate: 1 behind the last block of a tower, and `decay` times as much a block down.

    Args:
        parameters: Names and parameters; those whose names tell no place stand before all blocks, heads behind them.
        decay: 1 for one group.
    """
    named = list(parameters)
    if decay == 1:
        return [(1.0, [parameter for _, parameter in named])]
    depths = {name: depth_of(name) if ".".join(name.split(".")[:-1]) else -1 for name, _ in named}
    top = max(depths.values()) + 1
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in named:
        below = top - depths[name] if depths[name] >= 0 else 0
        groups.setdefault(below, []).append(parameter)
    return [(decay**below, groups[below]) for below in sorted(groups)]


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`(1 - alpha) start + alpha end` of two states of the same model (WiSE-FT, equation 1).

    Numbers that are not floats, such as counters of batch normalisation, are those of the end.

    Raises:
        UserError: The states are of different models.
    """
    if start.keys() != end.keys() or any(start[name].shape != value.shape for name, value in end.items()):
        raise UserError("the two states are of different models: their names or shapes differ")
    return {
        name: torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value.clone()
        for name, value in end.items()
    }


def between(alpha: float) -> str:
    """What records call weights at a share of the end."""
    return f"alpha {alpha:g}"
