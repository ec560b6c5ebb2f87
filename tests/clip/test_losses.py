"""Losses: NT-Xent against a naive double loop, its symmetries and a closed form; prompt consistency against loops.

Also: gradients in float64, a moved view moves the loss, a few steps lower it, half-precision inputs are widened, and
the refusals of wrong shapes.
"""

import math

import pytest
import torch
from torch import nn

from dassl_clip.clip.losses import nt_xent, prompt_consistency


def naive_nt_xent(a, b, temperature):
    rows = [row / row.norm() for row in torch.cat([a, b]).double()]
    n, total = len(a), 0.0
    for i, row in enumerate(rows):
        partner = (i + n) % (2 * n)
        denominator = sum(torch.exp(row @ other / temperature) for k, other in enumerate(rows) if k != i)
        total = total - torch.log(torch.exp(row @ rows[partner] / temperature) / denominator)
    return total / (2 * n)


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_equals_the_double_loop(n, temperature):
    a, b = (torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    expected = naive_nt_xent(a, b, temperature).item()
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert nt_xent(a.float(), b.float(), temperature).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_closed_form_for_orthogonal_pairs():
    n, tau = 4, 0.5
    views = torch.eye(n, dtype=torch.float64)
    expected = -1 / tau + math.log(math.exp(1 / tau) + 2 * n - 2)
    assert nt_xent(views, 3 * views, tau).item() == pytest.approx(expected, rel=1e-12)


def test_nt_xent_is_symmetric_and_permutation_invariant():
    a, b = torch.randn(2, 6, 4, dtype=torch.float64)
    order = torch.randperm(6)
    assert nt_xent(a, b, 0.1).item() == pytest.approx(nt_xent(b, a, 0.1).item(), rel=1e-12)
    assert nt_xent(a, b, 0.1).item() == pytest.approx(nt_xent(a[order], b[order], 0.1).item(), rel=1e-12)


def test_nt_xent_counts_negatives_of_its_own_view():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    moved = a.clone()
    moved[2] = a[0]  # a near-duplicate inside view a must cost image 0 something
    only_row_two_moved = nt_xent(moved, b, 0.1)
    assert not torch.isclose(only_row_two_moved, nt_xent(a, b, 0.1))


def test_nt_xent_gradient_and_single_pair():
    a, b = (t.requires_grad_() for t in torch.randn(2, 4, 3, dtype=torch.float64).unbind())
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, 0.3), (a, b))
    assert nt_xent(torch.randn(1, 3), torch.randn(1, 3), 0.1).item() == pytest.approx(0.0, abs=1e-7)


def test_twenty_steps_lower_nt_xent():
    torch.manual_seed(0)
    head = nn.Linear(8, 8)
    a, b = torch.randn(2, 6, 8)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.5)
    first = nt_xent(head(a), head(b), 0.5).item()
    for _ in range(20):
        optimiser.zero_grad()
        nt_xent(head(a), head(b), 0.5).backward()
        optimiser.step()
    assert nt_xent(head(a), head(b), 0.5).item() < 0.8 * first


def test_half_precision_inputs_are_widened():
    a, b = torch.randn(2, 6, 8).bfloat16()
    assert nt_xent(a, b, 0.1).dtype == torch.float32
    assert nt_xent(a, b, 0.1).item() == pytest.approx(nt_xent(a.float(), b.float(), 0.1).item(), rel=1e-6)


def test_consistency_equals_the_triple_loop():
    text, view = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for k in range(4):
            t, v = text[i, k] / text[i, k].norm(), view[i, k] / view[i, k].norm()
            total += sum((float(t[e]) - float(v[e])) ** 2 for e in range(5))
    assert prompt_consistency(text, view).item() == pytest.approx(total / (3 * 4 * 5), rel=1e-12)


def test_consistency_compares_each_image_with_its_own_view():
    text, view = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    before = prompt_consistency(text, view)
    for image in range(3):
        moved = view.clone()
        moved[image] = text[image]
        assert prompt_consistency(text, moved) < before


def test_wrong_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        nt_xent(torch.ones(3, 4), torch.ones(2, 4), 0.1)
    with pytest.raises(ValueError, match="positive temperature, got 0"):
        nt_xent(torch.ones(3, 4), torch.ones(3, 4), 0)
    with pytest.raises(ValueError, match="one shape"):
        prompt_consistency(torch.ones(3, 2, 4), torch.ones(1, 2, 4))
