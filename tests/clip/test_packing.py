"""Packing of sequences into bins.

Covers: every token has one row (or shares an equal one) and sees its own past alone; ends are found again; bins are
well filled; common beginnings are shared; the mask opens the prefix.
"""

import random

import pytest
import torch

from dassl_clip.clip.packing import Packing, pack_sequences, pack_tree
from dassl_clip.clip.text_blocks import packed_mask

CPU = torch.device("cpu")


def path_to(packing: Packing, sequence: int) -> list[tuple[int, int]]:
    """(source row, depth) of all rows that the end of a sequence sees, by depth."""
    places = packing.ends.shape[1]
    index, place = divmod(int(packing.order[sequence]), places)
    end = int(packing.ends[index, place])
    seen = packing.visible[index, end].nonzero().flatten().tolist()
    return sorted(((int(packing.source[index, r]), int(packing.depth[index, r])) for r in seen), key=lambda p: p[1])


def assert_causal(packing: Packing) -> None:
    """Whoever sees a row sees all that the row sees, and nothing deeper than itself."""
    for visible, depth in zip(packing.visible, packing.depth):
        assert visible.diagonal().all()
        for i, j in visible.nonzero().tolist():
            assert depth[j] <= depth[i]
            assert visible[i][visible[j]].all()


@pytest.mark.parametrize("lengths", [(3,), (5, 5, 5), tuple(random.Random(0).choices(range(1, 12), k=137)), (90, 2, 2)])
def test_sequences_see_their_own_tokens_in_order(lengths):
    stride = max(lengths) + 2
    packing = pack_sequences(lengths, stride, CPU)
    assert_causal(packing)
    for k, length in enumerate(lengths):
        assert path_to(packing, k) == [(k * stride + position, position) for position in range(length)]


def test_bins_hold_little_padding():
    lengths = tuple(random.Random(1).choices(range(3, 10), k=1000))
    assert pack_sequences(lengths, 10, CPU).source.numel() <= 1.03 * sum(lengths)


@pytest.mark.parametrize("seed", range(3))
def test_tree_paths_spell_the_sequences(seed):
    draw = random.Random(seed)
    sequences = [tuple(draw.choices(range(3), k=draw.randint(1, 9))) for _ in range(200)] + [(0, 1)] * 2 + [(7,) * 150]
    stride = 150
    tokens = torch.tensor([row + (-1,) * (stride - len(row)) for row in sequences]).flatten()
    packing = pack_tree(sequences, stride, CPU)
    assert_causal(packing)
    for k, sequence in enumerate(sequences):
        path = path_to(packing, k)
        assert [depth for _, depth in path] == list(range(len(sequence)))
        assert tuple(tokens[source].item() for source, _ in path) == sequence


def test_tree_shares_common_beginnings():
    sequences = [(1, 2, 3, 4, 5, 100 + k, 6, 7) for k in range(600)]
    packing = pack_tree(sequences, 8, CPU)
    assert packing.source.numel() < 0.55 * 8 * len(sequences)


def test_mask_opens_the_prefix_to_all():
    packing = pack_sequences((2, 3), 3, CPU)
    mask = packed_mask(packing.visible, 4)
    assert mask.shape == (1, 5, 9)
    assert (mask[..., :4] == 0).all()
    assert torch.equal(mask[..., 4:] == 0, packing.visible)
    assert torch.isinf(mask[..., 4:][~packing.visible]).all()
