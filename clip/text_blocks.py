"""open_clip's text modules: what they are, and their transformer run on packed rows behind a shared prefix.

The functions that run a block read the weights of open_clip's own modules (`ResidualAttentionBlock` with
`nn.MultiheadAttention`, and `CustomResidualAttentionBlock` with open_clip's `Attention`) and repeat what their
`forward` computes in evaluation mode.

Shapes: `P` prefixes, `G` bins, `T` rows of a bin, `Q` rows that ask, `S0` prefix rows, `D` width, `H` heads, `d` width
of a head.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

from .tokens import DEFAULT_LENGTH

READ_AT_END = ("argmax", "eos")  # pool types that read the row of the end-of-text token
COUNT_FROM_PADDING = ("roberta", "xlm-roberta")  # their first position is the one after the padding's id


@dataclass(frozen=True)
class PrefixRows:
    """Keys and values of the shared prefix in one layer, each `[P, 1, H, S0, d]`."""

    keys: Tensor
    values: Tensor


def plain_reason(config: Mapping[str, Any]) -> str:
    """Why a text tower of open_clip's configuration has not all the savings; "" where it has."""
    text = config["text_cfg"]
    if "hf_model_name" in text:
        return "transformers' tower: its own pass, in rows as long as the longest text"
    if text.get("embed_cls"):
        return "CoCa: a class token behind the padding"
    if text.get("no_causal_mask"):
        return "not causal"
    return "" if text.get("pool_type", "argmax") in READ_AT_END else f"reads {text['pool_type']!r}, not the end of text"


def context_length(owner: Any, tokenizer: Any) -> int:
    """Tokens of a text: the positions of open_clip's own towers; of transformers' as many as the tokenizer gives."""
    positions = int(owner.context_length or 0)
    if not isinstance(owner, HFTextEncoder):
        return positions
    length = int(getattr(tokenizer, "context_length", None) or DEFAULT_LENGTH)
    if owner.config.model_type in COUNT_FROM_PADDING:
        positions -= owner.config.pad_token_id + 1
    return min(length, positions) if positions > 0 else length


def token_embedding(owner: Any) -> nn.Embedding:
    """The embedding that turns token ids into vectors."""
    embedding = getattr(owner, "token_embedding", None)
    if embedding is None:
        embedding = owner.transformer.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise UserError(f"the text tower ({type(owner).__name__}) has no table of token embeddings")
    return embedding


def embed_dim(owner: nn.Module, width: int) -> int:
    """Size of the features of a text module."""
    projection = getattr(owner, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return projection.shape[1]
    return getattr(owner, "output_dim", None) or width


def is_causal(owner: nn.Module) -> bool:
    """Whether a text module masks the future, and nothing else."""
    mask = getattr(owner, "attn_mask", None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or getattr(owner, "cls_emb", None) is not None:
        return False
    future = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(((mask == float("-inf")) == future).all() and (mask.masked_fill(future, 0) == 0).all())


def has_known_blocks(owner: nn.Module) -> bool:
    """Whether every block of a text module is of a form that `run_block` computes."""
    blocks = getattr(getattr(owner, "transformer", None), "resblocks", ())
    return len(blocks) > 0 and all(_is_known(block) for block in blocks)


def _is_known(block: nn.Module) -> bool:
    """Whether a block has the parts that `run_block` reads, and no others that would change its output."""
    parts = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")
    if not all(hasattr(block, part) for part in parts) or hasattr(block, "ln_1_kv"):
        return False
    attn = block.attn
    if isinstance(attn, nn.MultiheadAttention):
        return attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn
    # Scaled cosine attention is left to the model's own forward pass.
    own = type(attn).__name__ == "Attention" and hasattr(attn, "in_proj_weight")
    return own and getattr(attn, "logit_scale", None) is None


def run_block(block: Any, x: Tensor, mask: Tensor, prefix: PrefixRows | None, ends: Tensor | None = None) -> Tensor:
    """One residual block on packed rows.

    Args:
        block: The open_clip block.
        x: `[P or 1, G, T, D]`.
        mask: `[G, T, S0 + T]`, added to the scores: 0 where a row may look, minus infinity elsewhere.
        prefix: The layer's prefix rows, or None for `S0 = 0`.
        ends: `[G, Q]`, the only rows whose output is wanted; None for all.

    Returns:
        `[P, G, T, D]`, or `[P, G, Q, D]` with `ends`.
    """
    attn = block.attn
    hidden = block.ln_1(x)
    if ends is None:
        query, keys, values = _project(attn, hidden, 0, 3).chunk(3, dim=-1)
    else:
        x, query = _pick(x, ends), _project(attn, _pick(hidden, ends), 0, 1)
        keys, values = _project(attn, hidden, 1, 3).chunk(2, dim=-1)
        mask = mask.gather(1, ends[:, :, None].expand(-1, -1, mask.shape[-1]))
    keys, values, query = _heads(attn, keys, "ln_k"), _heads(attn, values), _heads(attn, query, "ln_q")
    if prefix is not None:
        batch = max(len(keys), len(prefix.keys))
        bins = keys.shape[1]
        keys = torch.cat([prefix.keys.expand(batch, bins, -1, -1, -1), keys.expand(batch, -1, -1, -1, -1)], dim=3)
        values = torch.cat([prefix.values.expand(batch, bins, -1, -1, -1), values.expand(batch, -1, -1, -1, -1)], dim=3)
    return _finish(block, x, _attend(query, keys, values, mask))


def prefix_rows(block: Any, x: Tensor) -> PrefixRows:
    """Keys and values of prefix rows `[P, S0, D]` in a block."""
    keys, values = _project(block.attn, block.ln_1(x[:, None]), 1, 3).chunk(2, dim=-1)
    return PrefixRows(_heads(block.attn, keys, "ln_k"), _heads(block.attn, values))


def run_prefix_block(block: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, PrefixRows]:
    """One residual block on prefix rows `[P, S0, D]`; gives its output and its keys and values."""
    x = x[:, None]
    query, keys, values = _project(block.attn, block.ln_1(x), 0, 3).chunk(3, dim=-1)
    rows = PrefixRows(_heads(block.attn, keys, "ln_k"), _heads(block.attn, values))
    attended = _attend(_heads(block.attn, query, "ln_q"), rows.keys, rows.values, mask[None])
    return _finish(block, x, attended)[:, 0], rows


def run_prefix(blocks: Any, x: Tensor, deep: Tensor | None = None, first: int = 0) -> list[PrefixRows]:
    """Keys and values of prefix rows in every block.

    Args:
        blocks: The open_clip blocks.
        x: The rows before the first block, `[P, S0, D]`.
        deep: `[K, M, D]`: rows `first` to `first + M` become `deep[i - 1]` before block `i`, for `i` from 1 to `K`.
        first: See `deep`.
    """
    mask = causal_mask(x.shape[1], x.device)
    shared: list[PrefixRows] = []
    for number, block in enumerate(blocks):
        if deep is not None and 1 <= number <= len(deep):
            x = replace_rows(x, deep[number - 1], first)
        if number == len(blocks) - 1:
            return [*shared, prefix_rows(block, x)]
        x, rows = run_prefix_block(block, x, mask)
        shared.append(rows)
    return shared


def check_deep(deep: Tensor, first: int, width: int, layers: int) -> None:
    """Refuse deep prompts that do not fit a tower of `layers`, 0 for one that takes none, and width `D`.

    Args:
        deep: What should be `[K, M, D]`.
        first: Number of context rows before all class names.
        width: `D`.
        layers: Number of blocks.
    """
    if not layers:
        raise UserError(
            "deep prompts need a causal text tower that is read at the end of the text, as OpenAI's CLIP has, and this "
            "one is of another kind: take another backbone, or a depth of 1"
        )
    if deep.dim() != 3 or deep.shape[1] > first or deep.shape[2] != width or len(deep) >= layers:
        raise UserError(
            f"deep prompts must be [K, M, {width}] with K up to {layers - 1} (a depth of {layers}) and M up to the "
            f"{first} context tokens before the class names, got {list(deep.shape)}"
        )


def replace_rows(x: Tensor, rows: Tensor, first: int) -> Tensor:
    """`x` `[P, S, D]` with `rows` `[M, D]` in the place of its rows `first` to `first + M`, for all `P` alike."""
    own = rows.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :first], own, x[:, first + len(rows) :]], dim=1)


def causal_mask(rows: int, device: torch.device) -> Tensor:
    """`[rows, rows]`, added to scores: 0 up to the diagonal, minus infinity above it."""
    return torch.full((rows, rows), float("-inf"), device=device).triu(1)


def packed_mask(visible: Tensor, prefix_rows: int) -> Tensor:
    """`[G, T, prefix_rows + T]`, added to scores: 0 for the prefix and what is `visible` `[G, T, T]`, else -inf."""
    visible = F.pad(visible, (prefix_rows, 0), value=True)
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, float("-inf"))


def _project(attn: Any, hidden: Tensor, first: int, last: int) -> Tensor:
    """Rows `first * D` to `last * D` of the joint projection to queries, keys and values."""
    width = attn.in_proj_weight.shape[1]
    bias = attn.in_proj_bias
    rows = slice(first * width, last * width)
    return F.linear(hidden, attn.in_proj_weight[rows], None if bias is None else bias[rows])


def _heads(attn: Any, x: Tensor, norm: str = "") -> Tensor:
    """`[P, G, T, D]` as `[P, G, H, T, d]`, through the head's norm where the block has one."""
    heads: Tensor = x.unflatten(-1, (attn.num_heads, -1)).transpose(2, 3)
    return getattr(attn, norm, nn.Identity())(heads) if norm else heads


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention `[P, G, H, Q, d]` of queries `[P or 1, G, H, Q, d]` to keys and values `[P, G, H, R, d]`."""
    batch, bins = keys.shape[:2]
    mask = mask[:, None].to(query.dtype)
    if len(mask) > 1:
        mask = mask.expand(batch, *mask.shape).flatten(0, 1)
    query = query.expand(batch, -1, -1, -1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(query, keys.flatten(0, 1), values.flatten(0, 1), attn_mask=mask)
    attended: Tensor = out.unflatten(0, (batch, bins))
    return attended


def _finish(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block after the heads: output projection, residual, MLP."""
    attn = block.attn
    scale: Tensor | None = getattr(attn, "head_scale", None)
    if scale is not None:
        attended = attended * scale
    attended = attended.transpose(2, 3).flatten(-2)
    attended = attn.out_proj(getattr(attn, "ln_inner", nn.Identity())(attended))
    x = x + block.ls_1(getattr(block, "ln_attn", nn.Identity())(attended))
    mixed: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + mixed


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    """Rows `[G, Q]` of `[P, G, T, D]`, as `[P, G, Q, D]`."""
    return x.gather(2, rows[None, :, :, None].expand(len(x), -1, -1, x.shape[-1]))


def encode_ids(text: Any, ids: Tensor, blocks: Iterable[Any]) -> Tensor:
    """Text features `[K, E]`, not normalised, of token ids `[K, T]` through blocks that may be learned, with gradients.

    What follows the longest end-of-text token is cut: a causal tower does not read it.

    Args:
        text: The `TextTower` whose embeddings and last layers are used.
        ids: `[K, T]`.
        blocks: Of the transformer.
    """
    ends = text.pooled_row(ids)
    rows = int(ends.max()) + 1
    x = text.embed(ids[:, :rows]) + text.positional_embedding[:rows]
    mask = torch.full((rows, rows), float("-inf"), device=x.device).triu(1)
    for block in blocks:
        x = block(x, attn_mask=mask)
    features: Tensor = text.read(x[torch.arange(len(ids), device=x.device), ends.to(x.device)])
    return features
