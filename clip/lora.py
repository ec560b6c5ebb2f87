"""Low-rank changes of the attention of both towers, on copies of their blocks that share the frozen weights.

Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; Zanella, Ben Ayed, "Low-Rank
Few-Shot Adaptation of Vision-Language Models" (CLIP-LoRA), CVPR Workshops 2024, arXiv 2405.18541, and the authors'
program. In a block, the queries of tokens `x` (the output of its first norm) are

    W_q x + b_q + ALPHA / sqrt(RANK) B_q A_q dropout(x)

and keys and values likewise, each with a dropout of its own. Without training the changes are merged into the weights.

Shapes: `B` images or texts, `T` tokens, `W` width of a tower, `r` rank, `C` texts, `E` joint embedding.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

from .backbone import FrozenCLIP
from .text_blocks import encode_ids

PARTS = ("q", "k", "v")
TOWERS = ("text", "visual")


class LowRank(nn.Module):
    """The change `B A` of one projection, zero at first; the names are those of the authors' checkpoints.

    Args:
        width: `W`.
        rank: `r`.
        dropout: Share of the inputs of `A` that training sets to zero.
    """

    def __init__(self, width: int, rank: int, dropout: float):
        super().__init__()
        self.w_lora_A = nn.Parameter(torch.empty(rank, width))  # [r, W]
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))  # [W, r]
        nn.init.kaiming_uniform_(self.w_lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """What tokens `[B, T, W]` are changed by, unscaled."""
        return F.linear(F.linear(self.dropout(x), self.w_lora_A), self.w_lora_B)

    def product(self) -> Tensor:
        """`B A`, `[W, W]`."""
        return self.w_lora_B @ self.w_lora_A


class LoRAAttention(nn.Module):
    """Self-attention of a frozen block whose projections to queries, keys and values may have a low-rank change.

    Args:
        attention: The block's own attention, whose weights are used.
        changes: `LowRank` by `q_proj`, `k_proj` and `v_proj`.
        scale: Factor on the changes.
    """

    def __init__(self, attention: Any, changes: nn.ModuleDict, scale: float):
        super().__init__()
        self.num_heads, self.scale, self.changes = attention.num_heads, scale, changes
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values `[B, T, 3 W]` of tokens `[B, T, W]`."""
        names = [f"{part}_proj" for part in PARTS]
        if self.training:
            joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            changes = [self.changes[name](x) if name in self.changes else torch.zeros_like(x) for name in names]
            return joint + self.scale * torch.cat(changes, dim=-1)
        blank = self.in_proj_weight.new_zeros(x.shape[-1], x.shape[-1])
        merged = [cast(LowRank, self.changes[name]).product() if name in self.changes else blank for name in names]
        return F.linear(x, self.in_proj_weight + self.scale * torch.cat(merged), self.in_proj_bias)

    def forward(self, query: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        """Attended tokens `[B, T, W]` of tokens `[B, T, W]`, which are queries, keys and values."""
        heads = self.project(query).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if attn_mask is None else attn_mask.to(heads.dtype)
        query, key, value = heads
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class AdaptedCLIP(nn.Module):
    """Both towers of a frozen CLIP with low-rank changes in the attention of every block.

    `state_dict` and `parameters` are those of the changes alone, by the name of the tower, the number of the block and
    the projection: `visual.0.q_proj.w_lora_A`.

    Args:
        clip: The frozen CLIP; it stays as it is.
        rank: `r`.
        alpha: The changes are scaled by `alpha / sqrt(r)`.
        dropout: See `LowRank`.
        parts: Of `q`, `k` and `v` those that are changed.
        towers: Of `text` and `visual` those that are changed.

    Raises:
        UserError: A tower has no attention of a known kind.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        parts: Sequence[str] = PARTS,
        towers: Sequence[str] = TOWERS,
    ):
        super().__init__()
        owner: Any = getattr(clip.model, "text", clip.model)
        visual = clip.model.get_submodule("visual")
        own: dict[str, Any] = {"text": getattr(owner, "transformer", None), "visual": visual}
        known = {"text": clip.text.causal, "visual": _has_attention(visual)}
        wrong = " and ".join(tower for tower in towers if not known[tower])
        if wrong:
            raise UserError(
                f"the {wrong} tower of {clip.name} has no attention that low-rank changes are known for; change the "
                "other tower alone, or take a CLIP of two transformers of open_clip's kind, such as OpenAI's ViT models"
            )
        shared = {id(tensor): tensor for tensor in (*clip.model.parameters(), *clip.model.buffers())}
        copies: dict[str, Any] = {tower: copy.deepcopy(module, dict(shared)) for tower, module in own.items()}
        self._clip, self._towers = (clip,), copies  # unregistered: neither is learned
        for tower in towers:
            blocks = copies[tower].resblocks if tower == "text" else copies[tower].transformer.resblocks
            layers = nn.ModuleList()
            for block in blocks:
                width = block.attn.in_proj_weight.shape[1]
                changes = nn.ModuleDict({f"{part}_proj": LowRank(width, rank, dropout) for part in parts})
                block.attn = LoRAAttention(block.attn, changes, alpha / math.sqrt(rank))
                layers.append(changes)
            self.add_module(tower, layers)

    def train(self, mode: bool = True) -> "AdaptedCLIP":
        """Training mode uses dropout; otherwise the changes are merged."""
        super().train(mode)
        for tower in self._towers.values():
            for module in tower.modules():
                if isinstance(module, LoRAAttention):
                    module.train(mode)
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features `[B, E]`, not normalised, of images `[B, 3, H, W]`, with gradients to the changes."""
        out: Any = self._towers["visual"](images)
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features

    def encode_text(self, ids: Tensor) -> Tensor:
        """Text features `[C, E]`, not normalised, of token ids `[C, T]`, with gradients to the changes.

        What follows the longest end-of-text token is cut: a causal tower does not read it.
        """
        return encode_ids(self._clip[0].text, ids, self._towers["text"].resblocks)


def _has_attention(visual: nn.Module) -> bool:
    """Whether an image tower is a transformer whose blocks attend with one joint projection, batches first."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    return len(blocks) > 0 and all(
        getattr(getattr(block, "attn", None), "in_proj_weight", None) is not None and not hasattr(block, "ln_1_kv")
        for block in blocks
    )
