"""LP++: a linear probe blended with text features.

Covers: start, step sizes, logits, every pass and the final parameters against the authors' program, and that mistakes
in them are seen (a fresh gradient of alpha, means of features for sums); a class without images; real runs.
"""

import pytest
import torch

from dassl_clip.trainers.linear_probe_p2 import BlendedProbe, start_at, step_sizes, trained_passes
from tests.trainers.golden_runs import CLOSE, close, golden, same_change


@pytest.fixture
def lp():
    return golden("lp_plus_plus")


@pytest.fixture
def probe(lp):
    made = BlendedProbe(lp["text"])
    start_at(made, lp["features"], lp["labels"], lp["init_bias"])
    return made


def test_the_start_and_the_step_sizes_are_those_of_the_authors_program(lp, probe):
    close(probe.weight, lp["init_weight"], CLOSE)
    torch.testing.assert_close(probe.alpha.detach(), torch.full((5,), float(lp["init_alpha"])))
    rates = step_sizes(lp["features"], lp["text"])
    assert rates == pytest.approx((float(lp["lr_w"]), float(lp["lr_alpha"])), rel=1e-5)
    close(probe(lp["features"]), lp["train_logits_first"], CLOSE)


def test_every_pass_is_that_of_the_authors_program(lp, probe):
    alphas, losses = [probe.alpha.detach().clone()], []
    for number, loss in enumerate(trained_passes(probe, lp["features"], lp["labels"], int(lp["epochs"]))):
        if number == 0:
            close(probe(lp["features"]), lp["train_logits_second"], CLOSE)
        alphas.append(probe.alpha.detach().clone())
        losses.append(loss)
    same_change(torch.stack(alphas), lp["alpha_by_epoch"][0], lp["alpha_by_epoch"])
    assert losses[-1] == pytest.approx(float(lp["train_loss_last"]), rel=1e-3)
    same_change(probe.weight, lp["init_weight"], lp["weight_end"])
    same_change(probe.bias, lp["init_bias"], lp["bias_end"])
    close(probe.alpha, lp["alpha_end"], CLOSE)
    close(probe(lp["test_features"]), lp["test_logits_end"], CLOSE)


def test_a_fresh_gradient_of_alpha_would_be_seen(lp, probe):
    for number, _ in enumerate(trained_passes(probe, lp["features"], lp["labels"], int(lp["epochs"])), 1):
        if number % 10 == 0:
            probe.alpha.grad = None
    with pytest.raises(AssertionError):
        same_change(probe.alpha, lp["alpha_by_epoch"][0], lp["alpha_end"])


def test_a_class_without_images_starts_at_zero_weights_and_does_not_count(lp):
    text = torch.cat([lp["text"], lp["text"][:1]])
    more = BlendedProbe(text)
    start_at(more, lp["features"], lp["labels"], torch.zeros(6))
    assert torch.equal(more.weight[5], torch.zeros(24))
    torch.testing.assert_close(more.alpha.detach(), torch.full((6,), float(lp["init_alpha"])))
