"""Tip-Adapter and Tip-Adapter-F: a cache of training features.

Covers: keys, scores, the searched strengths and every step of the trained keys against the authors' program, and that
mistakes in them are seen (keys of normalised views, another eps, no weight decay); scores by a naive loop in float64;
the first of equal grid points; real runs: keys and choices recomputed from the data, with and without validation
images, `best_val`, a run opened again, one refined, images that cannot be read; refusals.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.trainers.tip_adapter import KeyCache, best_strengths, grid, mean_keys, trained_keys
from tests.trainers.golden_runs import CLOSE, close, golden, same_change


@pytest.fixture(scope="module")
def tip():
    return golden("tip_adapter")


def cache_of(tip, **strengths):
    start = {"beta": float(tip["init_beta"]), "alpha": float(tip["init_alpha"])} | strengths
    return KeyCache(tip["keys"], tip["values"], **start)


def orders(tip):
    first = int(tip["first_batch"])
    return [(order[:first], order[first:]) for order in tip["orders"]]


def search(tip, cache):
    top, steps = tip["search_scale"].tolist(), tip["search_step"].tolist()
    return best_strengths(cache, tip["val_features"], tip["val_labels"], tip["text"], top, steps)[:2]


def test_keys_scores_and_strengths_are_those_of_the_authors_program(tip):
    close(mean_keys(tip["cache_views"]), tip["keys"], CLOSE)
    close(F.one_hot(tip["labels"], int(tip["C"])), tip["values"], CLOSE)
    cache = cache_of(tip)
    close(cache(tip["val_features"], tip["text"]), tip["tip_val_logits_init"], CLOSE)
    found = search(tip, cache)
    assert found == pytest.approx((float(tip["best_beta"]), float(tip["best_alpha"])))
    best = cache_of(tip, beta=found[0], alpha=found[1])
    close(best(tip["test_features"], tip["text"]), tip["tip_test_logits_best"], CLOSE)


def steps_of(tip, **changed):
    settings = {name: float(tip[name]) for name in ("lr", "eps", "weight_decay")} | changed
    cache = cache_of(tip)
    steps = trained_keys(cache, tip["train_views"], tip["labels"], tip["text"], orders(tip), **settings)
    return cache, torch.stack([cache.keys.detach().clone() for _ in steps])


def test_every_step_of_the_keys_is_that_of_the_authors_program(tip):
    cache, steps = steps_of(tip)
    for found, expected in zip(steps, tip["f_adapter_steps"], strict=True):
        same_change(found, tip["keys"], expected)
    last = tip["f_test_logits_by_epoch"][-1]
    close(cache(tip["test_features"], tip["text"]), last, CLOSE)


def test_known_mistakes_are_seen(tip):
    with pytest.raises(AssertionError):
        close(mean_keys(F.normalize(tip["cache_views"], dim=-1)), tip["keys"], CLOSE)
    for mistake in ({"eps": 1e-8}, {"weight_decay": 0.0}):
        _, steps = steps_of(tip, **mistake)
        with pytest.raises(AssertionError):
            same_change(steps[-1], tip["keys"], tip["f_adapter_steps"][-1])


def test_scores_are_their_formula_at_any_scale():
    draw = np.random.default_rng(0)
    f, q, t = (draw.standard_normal((n, 6)) for n in (4, 7, 3))
    f, q, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, q, t))
    labels, beta, alpha, scale = draw.integers(0, 3, 7), 2.5, 1.7, 20.0
    expected = np.zeros((4, 3))
    for i in range(4):
        for c in range(3):
            near = sum(np.exp(-beta * (1 - f[i] @ q[k])) for k in range(7) if labels[k] == c)
            expected[i, c] = scale * f[i] @ t[c] + alpha * near
    cache = KeyCache(torch.from_numpy(q), F.one_hot(torch.from_numpy(labels)).double(), beta, alpha).double()
    found = cache(torch.from_numpy(f), torch.from_numpy(t), scale)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected))


def test_of_equal_points_of_the_grid_the_first_is_taken():
    text = torch.eye(2)
    cache = KeyCache(text, text, 1.0, 1.0)
    assert grid(5.1, 5) == pytest.approx([0.1, 1.1, 2.1, 3.1, 4.1])
    assert best_strengths(cache, text, torch.tensor([0, 1]), text, (3, 3), (4, 4)) == (0.1, 0.1, 100.0)
