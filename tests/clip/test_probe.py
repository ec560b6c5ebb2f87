"""CLAP's linear probe.

Covers: weights against a rewriting with `nn.Linear` and an own stopping rule; the optimum of a convex solver; the kept
weights' loss; separable data; classes without images; seeds; float64; the caller's tensors; refusals.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.clip.probe import fit_linear_probe


def some_data(n=45, width=6, classes=4, noise=0.7, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + noise * torch.randn(n, width, generator=generator)
    return F.normalize(features, dim=1).to(dtype), labels


def naive_probe(features, labels, classes, max_epochs, patience, min_drop, seed, rate=0.005, batch=32, in_a_row=False):
    """The probe as one writes it with a module; also the training loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features.shape[1], classes).to(features.dtype)
    bound = features.shape[1] ** -0.5
    start = torch.empty(classes, features.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    layer.weight.data, layer.bias.data = (part.to(features.dtype).clone() for part in (start[:, :-1], start[:, -1]))
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    history, weights = [], []
    for _ in range(max_epochs):
        order, losses = torch.randperm(len(labels), generator=generator), []
        for first in range(0, len(labels), batch):
            rows = order[first : first + batch]
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(features[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
        weights.append([p.detach().clone() for p in layer.parameters()])
        reference, row, total, kept = math.inf, 0, 0, 0
        for epoch, value in enumerate(history):
            if value <= reference - min_drop:
                reference, row, kept = value, 0, epoch
            else:
                row, total = row + 1, total + 1
        if (row if in_a_row else total) >= patience:
            break
    return weights[history.index(min(history)) if in_a_row else kept], history


@pytest.mark.parametrize("stopping", ["in-all", "in-a-row"])
@pytest.mark.parametrize("settings", [(7, 10, 0.001), (300, 3, 0.02), (300, 1, 0.5)])
def test_weights_equal_a_rewriting(settings, stopping):
    """(row 7.7) The authors' counter is never set back, and their weights are those of the last counted drop."""
    features, labels = some_data(dtype=torch.float64)
    max_epochs, patience, min_drop = settings
    given = {"max_epochs": max_epochs, "patience": patience, "min_drop": min_drop, "seed": 3}
    weight, bias = fit_linear_probe(features, labels, 4, **given, stopping=stopping)
    expected, history = naive_probe(features, labels, 4, **given, in_a_row=stopping == "in-a-row")
    assert len(history) == 7 if max_epochs == 7 else 1 < len(history) < 300  # the rule has stopped the longer ones
    torch.testing.assert_close(weight, expected[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bias, expected[1], rtol=1e-9, atol=1e-10)
    assert weight.dtype == torch.float64 and not weight.requires_grad


def test_the_two_rules_differ_and_the_default_is_the_authors():
    features, labels = some_data(noise=2.0, dtype=torch.float64)
    settings = {"learning_rate": 0.05, "batch_size": 4, "max_epochs": 100, "patience": 3, "seed": 3}
    default, authors, usual = (
        fit_linear_probe(features, labels, 4, **settings, **more)
        for more in ({}, {"stopping": "in-all"}, {"stopping": "in-a-row"})
    )
    assert all(map(torch.equal, default, authors)) and not torch.equal(authors[0], usual[0])
    lengths = [len(naive_probe(features, labels, 4, 100, 3, 0.001, 3, 0.05, 4, row)[1]) for row in (False, True)]
    assert lengths[0] < lengths[1]
    with pytest.raises(ValueError, match="stopping is 'never'; expected one of in-all, in-a-row"):
        fit_linear_probe(features, labels, 4, stopping="never")


def test_the_weights_of_the_best_epoch_are_kept():
    features, labels = some_data(noise=2.0, dtype=torch.float64)
    weight, bias = fit_linear_probe(
        features, labels, 4, learning_rate=2.0, batch_size=4, max_epochs=12, seed=3, stopping="in-a-row"
    )
    expected, history = naive_probe(features, labels, 4, 12, 10, 0.001, seed=3, rate=2.0, batch=4, in_a_row=True)
    assert min(history) < history[-1]  # so the last weights are others
    torch.testing.assert_close(weight, expected[0], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(bias, expected[1], rtol=1e-7, atol=1e-8)


def test_patience_makes_the_fit_stop_early():
    features, labels = some_data()
    few = fit_linear_probe(features, labels, 4, max_epochs=200, patience=2, min_drop=0.1)
    many = fit_linear_probe(features, labels, 4, max_epochs=200, patience=200, min_drop=0.1)
    losses = [F.cross_entropy(F.linear(features, *fit), labels).item() for fit in (few, many)]
    assert losses[1] < losses[0] - 0.1


def test_a_long_fit_comes_near_the_optimum_of_a_convex_solver():
    features, labels = some_data(n=60, noise=1.5, dtype=torch.float64)
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective():
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss.backward()
        return loss

    solver.step(objective)
    fit = fit_linear_probe(
        features, labels, 4, learning_rate=0.05, batch_size=60, max_epochs=1500, patience=1500, min_drop=0.0
    )
    optimum, reached = objective().item(), F.cross_entropy(F.linear(features, *fit), labels).item()
    assert optimum < 1.2  # the problem has something to learn
    assert optimum <= reached + 1e-9 and reached == pytest.approx(optimum, abs=1e-3)


def test_separable_images_are_all_learnt_and_a_class_may_have_none():
    features, labels = some_data(n=40, noise=0.1)
    weight, bias = fit_linear_probe(features, labels, 6, max_epochs=200, patience=200)
    assert weight.shape == (6, 6) and bias.shape == (6,)
    assert torch.equal(F.linear(features, weight, bias).argmax(1), labels)


def test_seeds_repeat_and_arguments_stay():
    features, labels = some_data()
    before = features.clone(), labels.clone()
    one, again, other = (fit_linear_probe(features, labels, 4, max_epochs=5, seed=s) for s in (1, 1, 2))
    assert all(map(torch.equal, one, again)) and not torch.equal(one[0], other[0])
    assert torch.equal(features, before[0]) and torch.equal(labels, before[1])
    with torch.no_grad():
        inside = fit_linear_probe(features, labels, 4, max_epochs=5, seed=1)
    assert all(map(torch.equal, one, inside))
    half = fit_linear_probe(features.half(), labels, 4, max_epochs=2)
    assert half[0].dtype == torch.float32


def test_refusals():
    features, labels = some_data()
    for wrong in ((features[:0], labels[:0]), (features[0], labels), (features, labels[:-1])):
        with pytest.raises(ValueError, match=r"features \[N, E\] and labels \[N\]"):
            fit_linear_probe(*wrong, 4)
    with pytest.raises(ValueError, match="between 0 and 2, got 0 to 3"):
        fit_linear_probe(features, labels, 3)
    broken = features.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fit_linear_probe(broken, labels, 4)
    with pytest.raises(ValueError, match="at least 1, got 0, 1000 and 10"):
        fit_linear_probe(features, labels, 4, batch_size=0)
    with pytest.raises(FloatingPointError, match="epoch"):
        fit_linear_probe(features * 1e30, labels, 4, learning_rate=1e30)
