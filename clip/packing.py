"""How short token sequences share the rows of a causal transformer.

Sequences of different lengths are laid side by side in `G` bins of `T` rows, so that a pass computes hardly any
padding, and a mask keeps each row to what it may see. Sequences that begin with the same tokens can share those rows as
well: in a causal transformer the row of a token depends on the tokens before it alone.

Letters beside those of the project: `G` bins, `T` rows of a bin, `Q` places for sequence ends in a bin.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .tokens import common_length

BIN_ROWS = 64
TREE_ROWS = 128


@dataclass(frozen=True)
class Packing:
    """The place of every row of `K` sequences, each of which is read at its last token.

    Attributes:
        source: `[G, T]`, which row of the flattened `[K * S]` table of tokens stands here.
        depth: `[G, T]`, how many tokens of its sequence come before this row.
        visible: `[G, T, T]`, True where row `i` of a bin may attend to row `j`.
        ends: `[G, Q]`, the rows of each bin at which sequences end; short lists repeat their first entry.
        order: `[K]`, where each sequence's end stands in the flattened `[G * Q]` table of ends.
    """

    source: Tensor
    depth: Tensor
    visible: Tensor
    ends: Tensor
    order: Tensor

    def bins(self, start: int, stop: int) -> "Packing":
        """The bins from `start` to `stop`; `order` stays that of the whole."""
        parts = {name: value[start:stop] for name, value in vars(self).items() if name != "order"}
        return Packing(**parts, order=self.order)

    def to(self, device: torch.device) -> "Packing":
        """The same packing with its tensors on `device`."""
        return Packing(**{name: value.to(device) for name, value in vars(self).items()})


@lru_cache(maxsize=512)
def pack_sequences(lengths: tuple[int, ...], stride: int, device: torch.device) -> Packing:
    """Pack sequences that share no rows.

    Args:
        lengths: Number of tokens of each of the `K` sequences, all at least 1.
        stride: `S`, tokens a sequence in the table that `source` points into.
        device: Where the tensors go.

    Returns:
        The packing, with as few padding rows as longest-first packing into equally filled bins leaves.
    """
    loads = [(0, index) for index in range(max(1, round(sum(lengths) / max(BIN_ROWS, *lengths))))]  # rows used, bin
    placed = []  # sequence, bin, first row
    for sequence in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        load, index = heapq.heappop(loads)
        placed.append((sequence, index, load))
        heapq.heappush(loads, (load + lengths[sequence], index))
    builder = _Builder(len(loads), max(load for load, _ in loads), len(lengths))
    for sequence, index, first in placed:
        count = lengths[sequence]
        start = sequence * stride
        builder.add(index, sequence, range(first, first + count), 0, range(start, start + count))
    return builder.packing(device)


def pack_tree(sequences: Sequence[tuple[int, ...]], stride: int, device: torch.device) -> Packing:
    """Pack sequences so that those of a bin share the rows of the tokens that they begin with.

    Args:
        sequences: Token ids of each of the `K` sequences.
        stride: `S`, tokens a sequence in the table that `source` points into.
        device: Where the tensors go.

    Returns:
        The packing; neighbours in the order of their tokens come into the same bin.
    """
    capacity = max(TREE_ROWS, max(map(len, sequences)))
    placed: list[tuple[int, list[int], int]] = []  # bin, path of rows, number of rows shared with the sequence before
    sequence_order = sorted(range(len(sequences)), key=lambda k: sequences[k])
    index, used, widest = 0, 0, 0
    before: tuple[int, ...] = ()
    path: list[int] = []
    for k in sequence_order:
        tokens = sequences[k]
        shared = common_length(before, tokens)
        if used + len(tokens) - shared > capacity:
            index, used, shared = index + 1, 0, 0
        path = [*path[:shared], *range(used, used + len(tokens) - shared)]
        used += len(tokens) - shared
        widest, before = max(widest, used), tokens
        placed.append((index, path, shared))
    builder = _Builder(index + 1, widest, len(sequences))
    for k, (index, path, shared) in zip(sequence_order, placed):
        source = [k * stride + position for position in range(shared, len(path))]
        builder.add(index, k, path, shared, source)
    return builder.packing(device)


class _Builder:
    """Collects the rows of sequences into the tables of a `Packing`."""

    def __init__(self, bins: int, rows: int, sequences: int):
        self.source = np.zeros((bins, rows), dtype=np.int64)
        self.depth = np.zeros((bins, rows), dtype=np.int64)
        # A padding row sees itself, since a softmax over nothing is not a number.
        self.visible = np.broadcast_to(np.eye(rows, dtype=bool), (bins, rows, rows)).copy()
        self.ends: list[list[int]] = [[] for _ in range(bins)]
        self.place = [(0, 0)] * sequences

    def add(self, index: int, sequence: int, path: Sequence[int], shared: int, source: Sequence[int]) -> None:
        """Put a sequence into bin `index` on the rows `path`, the first `shared` of which stand there already."""
        path_rows = np.asarray(path)
        new = path_rows[shared:]
        self.source[index, new] = source
        self.depth[index, new] = np.arange(shared, len(path))
        self.visible[index, new[:, None], path_rows[None]] = np.tri(len(path), dtype=bool)[shared:]
        self.place[sequence] = (index, len(self.ends[index]))
        self.ends[index].append(int(path[-1]))

    def packing(self, device: torch.device) -> Packing:
        """The finished packing on `device`."""
        places = max(map(len, self.ends))
        ends = [rows + rows[:1] * (places - len(rows)) for rows in self.ends]
        order = [index * places + place for index, place in self.place]
        arrays = (self.source, self.depth, self.visible, np.asarray(ends), np.asarray(order))
        return Packing(*(torch.from_numpy(array) for array in arrays)).to(device)
