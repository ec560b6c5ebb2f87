"""CLIP's frozen text tower, made to read prompts at the cost of their own tokens.

A tower that is causal and is read only at the end-of-text token allows these savings, all of them exact:

1. Nothing after a prompt's end-of-text token is computed: prompts have 8 to 18 tokens, not 77.
2. The tokens before the class name (start-of-text and the context) are the same for all classes: their keys and values
   are computed once a layer and shared.
3. Prompts of different lengths are packed side by side into bins (`packing.py`), so that padding costs next to nothing;
   fixed texts that begin alike share the rows of their common beginning.
4. In the last layer only the end-of-text row has a query, an output projection and an MLP.
5. Where the class tokens are the same for a batch of contexts, their part of the first layer is computed once.

Chunks of classes that do not fit the memory budget are computed again in the backward pass. Other towers run their own
forward pass: transformers' over rows as long as the longest prompt (they mask the padding), the rest over full rows.

Every weight is read from the open_clip modules at the moment of use; none is copied. Shapes: `P` prefixes, `B` images,
`C` classes, `M` context tokens, `S0` prefix rows, `S1` rows after them, `D` text width, `E` joint embedding, `K` texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dassl_clip.results.errors import UserError

from .memory import activation_budget, chunk_size, plan_chunks, rows_without_gradients
from .packing import Packing, pack_sequences, pack_tree
from .text_blocks import (
    READ_AT_END,
    PrefixRows,
    check_deep,
    context_length,
    embed_dim,
    has_known_blocks,
    is_causal,
    packed_mask,
    run_block,
    run_prefix,
    token_embedding,
)
from .tokens import ClassTokens, TokenReader, prompt_order

POSITIONS = ("end", "middle", "front")
TEXTS_AT_ONCE = 16384  # whole texts sorted and packed together
FLOATS_PER_ROW = 20  # what a layer keeps for its backward pass, in multiples of D a row

# A part of the prompts behind the shared prefix, for the classes from start to stop: a table of embeddings
# [P or 1, R, D], and which of its R rows stands at each place, [C', S1].
Rows = Callable[[int, int], tuple[Tensor, Tensor]]


class TextTower(nn.Module):
    """The text side of an open_clip model.

    Args:
        model: The open_clip model: `CLIP` (text parts on the model itself), `CustomTextCLIP` or `CoCa` (`model.text`).
        tokenizer: The tokenizer that belongs to it, called as `tokenizer(texts, context_length=...)`.

    Attributes:
        width: `D`.
        embed_dim: `E`.
        context_length: Tokens that the tower reads, start and end included: as many as open_clip's tokenizer gives.
        vocab_size: Number of token embeddings.
        causal: Whether the savings apply: a causal mask, read at the end-of-text token, blocks of a known kind.
        masks_padding: Whether the tower takes no notice of padding after a text, so that rows need none.
        memory_budget: Bytes that a pass may keep for its backward pass; None takes a quarter of the device's memory.
    """

    memory_budget: int | None = None
    transformer: Any
    positional_embedding: Tensor
    ln_final: nn.Module
    text_projection: nn.Linear | Tensor | None

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor]):
        super().__init__()
        owner: Any = getattr(model, "text", model)  # open_clip has no types
        # The owner runs the plain path. It stays unregistered, since a `CLIP` owner holds the image tower as well.
        self._owner = (owner,)
        self.token_embedding = token_embedding(owner)
        self.width = self.token_embedding.embedding_dim
        self.vocab_size = self.token_embedding.num_embeddings
        self.context_length = context_length(owner, tokenizer)
        self.tokens = TokenReader(tokenizer, self.context_length)
        self.masks_padding = isinstance(owner, HFTextEncoder) and owner.config.pad_token_id == self.tokens.pad
        self.embed_dim = embed_dim(owner, self.width)
        self.pool_type = getattr(owner, "text_pool_type", getattr(owner, "pool_type", "own"))
        self.eos_id: int = getattr(owner, "text_eos_id", getattr(owner, "eos_id", -1))
        self.causal = self.pool_type in READ_AT_END and is_causal(owner) and has_known_blocks(owner)
        self.layers = max((len(part) for part in owner.modules() if isinstance(part, nn.ModuleList)), default=1)
        if self.causal:
            self.transformer = owner.transformer
            self.positional_embedding = owner.positional_embedding
            self.ln_final = owner.ln_final
            self.text_projection = owner.text_projection

    @property
    def device(self) -> torch.device:
        """Where the tower's weights are."""
        return self.token_embedding.weight.device

    @property
    def out_dtype(self) -> torch.dtype:
        """dtype of the features: float64 for a float64 model, else float32."""
        return torch.promote_types(self.token_embedding.weight.dtype, torch.float32)

    # ------------------------------------------------------------------------------------------------- tokens

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[K, context_length]`, int64, of `K` texts, cut at the context length as open_clip cuts them."""
        return self.tokens.read([texts] if isinstance(texts, str) else list(texts)).to(self.device)

    def class_tokens(self, classnames: Sequence[str], suffix: str = ".", n_ctx: int = 0) -> ClassTokens:
        """Tokens of "name." and end-of-text for each class, as they stand in CoOp's full sentence "X X X X name.".

        Args:
            classnames: `C` names; underscores count as blanks.
            suffix: The text that follows each name at once.
            n_ctx: Number of context tokens that have to fit as well; `encode_prompts` checks its own context.

        Returns:
            The tokens, for `encode_prompts`.

        Raises:
            UserError: No names are given, a name is empty, or one does not fit into the context length.
        """
        classes = self.tokens.classes(classnames, suffix, n_ctx)
        return replace(classes, ids=classes.ids.to(self.device))

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `[..., D]` of `ids` `[...]`, without positions."""
        embeddings: Tensor = self.token_embedding(ids.to(self.device, non_blocking=True))
        return embeddings

    # ------------------------------------------------------------------------------------------------- texts

    @torch.no_grad()
    def encode(self, texts: Sequence[str] | Tensor, chunk: int | str | None = "auto") -> Tensor:
        """Text features of whole texts, not normalised, without gradients.

        Args:
            texts: `K` texts, or their token ids `[K, context_length]`.
            chunk: Texts taken at once; "auto" fits the work, None takes all.

        Returns:
            `[K, E]`, float32 (float64 for a float64 model).
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        if not len(ids):
            return torch.zeros(0, self.embed_dim, dtype=self.out_dtype, device=self.device)
        if not self.causal:
            size = chunk_size(chunk, len(ids), auto=max(1, self._rows_at_once() // self._row_length(ids)))
            parts = [self._own_forward(None, p[:, : self._row_length(p)].to(self.device)) for p in ids.split(size)]
            return torch.cat(parts).to(self.out_dtype)
        size = chunk_size(chunk, len(ids), auto=TEXTS_AT_ONCE)
        ends = self.pooled_row(ids).tolist()
        sequences = [tuple(row[: end + 1]) for row, end in zip(ids.tolist(), ends)]
        # Sorted, texts that begin alike are neighbours, so that each part shares as many rows as it can.
        order = sorted(range(len(sequences)), key=sequences.__getitem__)
        features = torch.empty(len(ids), self.embed_dim, dtype=self.out_dtype, device=self.device)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            features[part] = self._encode_tree([sequences[k] for k in part])
        return features

    def _encode_tree(self, sequences: list[tuple[int, ...]]) -> Tensor:
        """Features `[K, E]` of token sequences of any lengths, which share the rows of common beginnings."""
        width = max(map(len, sequences))
        table = torch.tensor([row + (0,) * (width - len(row)) for row in sequences], device=self.device).flatten()
        packing = pack_tree(sequences, width, self.device)
        bins = max(1, self._rows_at_once() // packing.source.shape[1])
        picked = []
        for start in range(0, len(packing.source), bins):
            part = packing.bins(start, start + bins)
            picked.append(self._run(self.embed(table[part.source])[None], part, None, 0).flatten(1, 2))
        return self.read(torch.cat(picked, dim=1)[0, packing.order])

    # ------------------------------------------------------------------------------------------------- prompts

    def encode_prompts(
        self,
        context: Tensor,
        classes: ClassTokens,
        position: str = "end",
        chunk: int | str | None = "auto",
        class_specific: bool = False,
        deep: Tensor | None = None,
    ) -> Tensor:
        """Text features of the prompts of all classes, not normalised, with gradients to the context.

        Args:
            context: `[M, D]` for one context, `[B, M, D]` for a batch of them, or `[C, M, D]` if `class_specific`.
            classes: The class names' tokens, from `class_tokens`.
            position: Where the class name stands: "end" (context, name), "middle" (half of the context, name, the other
                half) or "front" (name, context); the full stop and end-of-text always come last. CoOp's
                CLASS_TOKEN_POSITION.
            chunk: Classes taken at once: a number (each chunk is computed again in the backward pass), "auto" (as many
                chunks as the memory budget holds are kept, the others computed again) or None (all, nothing again).
            class_specific: Whether `context` holds one context for each class.
            deep: `[K, M', D]`, `M' <= M`: before layer `i` of 1 to `K`, counted from 0, the first `M'` context rows
                become `deep[i - 1]`, without positions. They stand before all names, so that sharing stays exact.

        Returns:
            `[C, E]`, or `[B, C, E]` for a batch of contexts; float32 (float64 for a float64 model).

        Raises:
            UserError: An unknown position, a context or deep prompts of another shape, or prompts that are too long.
        """
        if position not in POSITIONS:
            raise UserError(f"the class name stands at one of {', '.join(POSITIONS)}, not at {position!r}")
        batched = context.dim() == 3 and not class_specific
        wanted = (
            f"[{len(classes)}, M, {self.width}]" if class_specific else f"[M, {self.width}] or [B, M, {self.width}]"
        )
        if (
            context.dim() not in ((3,) if class_specific else (2, 3))
            or context.shape[-1] != self.width
            or (class_specific and len(context) != len(classes))
        ):
            raise UserError(f"the context must have the shape {wanted}, got {list(context.shape)}")
        n_ctx = context.shape[-2]
        if len(self.tokens.head) + n_ctx + max(classes.lengths) > self.context_length:
            self.tokens.check_fit(classes, n_ctx)

        dtype = torch.promote_types(context.dtype, self.token_embedding.weight.dtype)
        context = (context if context.dim() == 3 else context[None]).to(dtype)
        head = self.embed(torch.tensor(self.tokens.head, dtype=torch.long))[None].to(dtype)  # [1, S_head, D]
        own = self.embed(classes.ids).to(dtype)  # [C, S1, D]
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        first = 0 if class_specific else before
        prefix = head
        if first:
            prefix = torch.cat([head.expand(len(context), -1, -1), context[:, :first]], dim=1)
        if deep is not None:
            check_deep(deep, first, self.width, self.layers if self.causal else 0)
        is_context, number = (
            t.to(self.device, non_blocking=True)
            for t in prompt_order(classes.lengths, classes.name_lengths, first, before, n_ctx)
        )

        def rows(start: int, stop: int) -> tuple[Tensor, Tensor]:
            """The context rows that are not in the prefix, then the class's own rows."""
            tokens = own[start:stop]
            within = torch.arange(stop - start, device=self.device)[:, None]
            if first == n_ctx:
                lead = tokens.new_zeros(1, 0, self.width)
            elif class_specific:
                lead = context[start:stop].flatten(0, 1)[None]
            else:
                lead = context
            table = torch.cat([lead, tokens.flatten(0, 1).expand(len(lead), -1, -1)], dim=1)
            place = lead.shape[1] + within * tokens.shape[1] + number[start:stop]
            context_place = number[start:stop] + (within * n_ctx if class_specific else 0)
            return table, torch.where(is_context[start:stop], context_place, place)

        lengths = tuple(n_ctx - first + length for length in classes.lengths)
        contexts = len(context) if batched else 1
        grad = context.requires_grad or (deep is not None and deep.requires_grad)
        features = self._encode_chunks(prefix, rows, lengths, grad, chunk, contexts, deep)
        return features if batched else features[0]

    # ------------------------------------------------------------------------------------------------- chunks

    def _encode_chunks(
        self,
        prefix: Tensor,
        rows: Rows,
        lengths: tuple[int, ...],
        grad: bool,
        chunk: int | str | None,
        contexts: int,
        deep: Tensor | None,
    ) -> Tensor:
        """Features `[P, C, E]` of `C` classes with `lengths` rows each behind `prefix`, chunk by chunk."""
        if not contexts:
            return prefix.new_zeros(0, len(lengths), self.embed_dim, dtype=self.out_dtype)
        grad = grad and torch.is_grad_enabled()
        encode: Callable[..., Tensor] = self._encode_packed if self.causal else self._encode_plain
        shared = self._prefix_pass(prefix, deep) if self.causal else prefix
        offset, count = prefix.shape[1], len(lengths)
        if self.causal:
            rows_each = sum(lengths) / count
        else:
            rows_each = offset + max(lengths) if self.masks_padding else self.context_length
        chunks = plan_chunks(
            count, chunk, grad, contexts * rows_each, self.layers, self._bytes_per_row(), self._budget()
        )
        parts: list[Tensor] = []
        for start, stop, again in chunks:
            arguments = (shared, offset, rows, start, stop, lengths[start:stop])
            if again:
                parts.append(checkpoint(encode, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(encode(*arguments))
        return torch.cat(parts, dim=1).expand(contexts, -1, -1)

    def _budget(self) -> int:
        """Bytes that a pass may keep."""
        return self.memory_budget or activation_budget(self.device)

    def _bytes_per_row(self) -> int:
        """Bytes that a layer keeps for one row."""
        return FLOATS_PER_ROW * self.width * self.out_dtype.itemsize

    def _rows_at_once(self) -> int:
        """Rows that a pass without gradients takes at once."""
        return rows_without_gradients(self._budget(), self._bytes_per_row())

    # ------------------------------------------------------------------------------------------------- passes

    def _prefix_pass(self, prefix: Tensor, deep: Tensor | None) -> list[PrefixRows]:
        """Keys and values of the prefix `[P, S0, D]` in every layer; none for an empty prefix."""
        if not prefix.shape[1]:
            return []
        x = self._cast(prefix) + self._cast(self.positional_embedding[: prefix.shape[1]])
        return run_prefix(self.transformer.resblocks, x, deep, len(self.tokens.head))

    def _encode_packed(
        self, shared: list[PrefixRows], offset: int, rows: Rows, start: int, stop: int, lengths: tuple[int, ...]
    ) -> Tensor:
        """Features `[P, C', E]` of the classes from `start` to `stop`, without padding."""
        table, index = rows(start, stop)
        packing = pack_sequences(lengths, index.shape[1], table.device)
        source = index.flatten()[packing.source]
        x = table.index_select(1, source.flatten()).unflatten(1, source.shape)  # [P or 1, G, T, D]
        picked = self._run(x, packing, shared, offset).flatten(1, 2)
        return self.read(picked[:, packing.order])

    def _run(self, x: Tensor, packing: Packing, shared: list[PrefixRows] | None, offset: int) -> Tensor:
        """The transformer over packed embeddings `[P or 1, G, T, D]`; gives the rows at the ends, `[P, G, Q, D]`."""
        blocks = self.transformer.resblocks
        x = self._cast(x) + self._cast(self.positional_embedding[offset + packing.depth])
        mask = packed_mask(packing.visible, offset if shared else 0)
        for number, block in enumerate(blocks):
            ends = packing.ends if number == len(blocks) - 1 else None
            x = run_block(block, x, mask, shared[number] if shared else None, ends)
        return x

    def read(self, x: Tensor) -> Tensor:
        """Features `[..., E]` of end-of-text rows `[..., D]`."""
        x = self.ln_final(x)
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return x.to(self.out_dtype)

    def _encode_plain(
        self, prefix: Tensor, offset: int, rows: Rows, start: int, stop: int, lengths: tuple[int, ...]
    ) -> Tensor:
        """Features `[P, C', E]` through the model's own forward pass, all prompts padded to one length."""
        table, index = rows(start, stop)
        batch, classes = max(len(prefix), len(table)), len(index)
        suffix = table.index_select(1, index.flatten()).unflatten(1, index.shape)  # [P or 1, C', S1, D]
        x = torch.cat(
            [prefix[:, None].expand(batch, classes, -1, -1), suffix.expand(batch, -1, -1, -1)], dim=2
        )  # [P, C', S0 + S1, D]
        reader, total = self.tokens, offset + max(lengths) if self.masks_padding else self.context_length
        stops = offset + torch.tensor(lengths, device=self.device)
        place = torch.arange(total, device=self.device)
        inside = place < stops[:, None]  # [C', total]
        ids = torch.where(inside, reader.placeholder, reader.pad)
        if reader.tail:
            ids[torch.arange(classes), stops - 1] = reader.tail[-1]
        ids[:, : len(reader.head)] = torch.tensor(reader.head, dtype=torch.long, device=self.device)
        pad = self.embed(torch.tensor(reader.pad)).to(x.dtype)
        x = torch.cat([x[:, :, :total], pad.expand(batch, classes, max(0, total - x.shape[2]), -1)], dim=2)
        x = torch.where(inside[None, :, :, None], x, pad)
        features = self._own_forward(x.flatten(0, 1), ids.repeat(batch, 1))
        by_class: Tensor = features.unflatten(0, (batch, classes))
        return by_class.to(self.out_dtype)

    def _own_forward(self, embeddings: Tensor | None, ids: Tensor) -> Tensor:
        """The model's own text features `[N, E]` of `ids` `[N, S]`, from other embeddings if given."""
        owner = self._owner[0]
        read: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = getattr(owner, "encode_text", owner)
        handle = self.token_embedding.register_forward_hook(lambda *_: embeddings)  # a hook's None changes nothing
        try:
            features = read(ids)
        finally:
            handle.remove()
        return features[0] if isinstance(features, tuple) else features

    def _row_length(self, ids: Tensor) -> int:
        """Tokens of the longest of some texts `[K, S]` where padding counts for nothing, else `S`."""
        filled = ids.ne(self.tokens.pad).any(0).nonzero() if self.masks_padding else ids.new_empty(0)
        return int(filled.max()) + 1 if len(filled) else ids.shape[1]

    def _cast(self, x: Tensor) -> Tensor:
        """`x` in the dtype of the transformer's weights, as open_clip casts its embeddings."""
        return x.to(self.transformer.resblocks[0].mlp.c_fc.weight.dtype)

    def pooled_row(self, ids: Tensor) -> Tensor:
        """Index `[K]` of the row that a causal tower reads, for `ids` `[K, S]`."""
        return ids.eq(self.eos_id).int().argmax(-1) if self.pool_type == "eos" else ids.argmax(-1)
