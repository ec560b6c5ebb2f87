"""Self-attention of a frozen image tower by torch's `scaled_dot_product_attention`, in every precision.

`nn.MultiheadAttention` has a fused kernel for evaluation in float32 alone. Under autocast, and where gradients go
through to the images, it projects transposed rows, for which torch on the CPU copies the weights once for each token.
Here rows are projected as they lie in memory, by the same weights under the same names.

Shapes: `B` images, `T` tokens, `W` width, `H` heads, `d = W / H`.
"""

from typing import Any, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.results.errors import UserError


class SelfAttention(nn.Module):
    """What `nn.MultiheadAttention` computes in evaluation mode of queries that are keys and values as well.

    Args:
        attention: The module whose weights are used; batches come first.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attended tokens.

        Args:
            query: `[B, T, W]`.
            key: The same tensor.
            value: The same tensor.
            need_weights: Must be False.
            attn_mask: `[T, T]`, added to the scores, or None.

        Returns:
            `[B, T, W]`, and None in place of the weights.

        Raises:
            UserError: Other keys or values, or weights that are asked for.
        """
        if key is not query or value is not query or need_weights:
            raise UserError("the image tower's attention is of its tokens among themselves, and gives no weights")
        batch, tokens, _ = query.shape
        joint = F.linear(query, self.in_proj_weight, self.in_proj_bias)  # [B, T, 3 W]
        q, k, v = joint.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, tokens, self.embed_dim)), None


def use_fused_attention(visual: nn.Module) -> int:
    """Let the blocks of open_clip's image transformer attend by `SelfAttention`; other towers stay as they are.

    Returns:
        How many blocks do.
    """
    blocks: Any = getattr(getattr(visual, "transformer", None), "resblocks", ())
    changed = 0
    for block in blocks:
        attention = getattr(block, "attn", None)
        if _is_plain(attention) and not hasattr(block, "ln_1_kv"):
            block.attn = SelfAttention(attention)
            changed += 1
    return changed


def _is_plain(attention: Any) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is torch's own attention, with one joint projection and nothing added to keys and values."""
    return (
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
