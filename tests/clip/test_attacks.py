"""Attacks on functions from pixels to scores.

Covers: closed forms on linear scores (FGSM's corner, the corner that 20 steps reach from any start, the margin's
classes, its cap); float64 rewritings with plain loops on a small network; the ball and the clamp, also in the authors'
space; seeds, batch sizes and batch neighbours; one class, no images; caller's tensors, model parameters, no_grad and
inference mode; pixel space; refusals.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.clip.attacks import (
    ATTACKS,
    EPSILON,
    AttackSpec,
    attack,
    margin_loss,
    pixel_space,
    to_pixels,
)

SHAPE = (3, 4, 5)
NAMES = list(ATTACKS)


def some_images(n=4, low=0.2, high=0.8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand((n, *SHAPE), generator=generator, dtype=dtype)


def network(classes=3, dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, classes)).to(dtype)


def linear(classes=2, seed=0):
    weight = torch.randn(60, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weight, lambda pixels: pixels.flatten(1) @ weight


LABELS = torch.tensor([0, 2, 1, 0])


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def test_the_published_settings():
    assert EPSILON == 0.031
    assert ATTACKS["FGSM"] == AttackSpec("cross_entropy", 1, 1.0, False)
    assert ATTACKS["PGD-20"] == AttackSpec("cross_entropy", 20, 0.1, True)
    assert ATTACKS["CW-20"] == AttackSpec("margin", 20, 0.1, True)


@pytest.mark.parametrize("name", NAMES)
def test_linear_scores_of_two_classes_are_attacked_into_the_best_corner(name):
    weight, scores = linear()
    images, labels = some_images(), torch.tensor([0, 1, 1, 0])
    towards = torch.stack([weight[:, 1 - y] - weight[:, y] for y in labels.tolist()]).sign().view(images.shape)
    attacked = attack(name, scores, images, labels, epsilon=0.05, generator=seeded())
    torch.testing.assert_close(attacked, images + 0.05 * towards, rtol=0, atol=1e-12)


def test_margin_goes_for_the_best_other_class():
    weight = torch.eye(60, 3, dtype=torch.float64)  # the score of class c is pixel c
    images = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    images.view(-1)[:3] = torch.tensor([0.6, 0.55, 0.3])
    spec = AttackSpec("margin", 1, 1.0, False)
    moved = attack(spec, lambda x: x.flatten(1) @ weight, images, torch.tensor([0]), 0.01) - images
    expected = torch.zeros(60, dtype=torch.float64)
    expected[0], expected[1] = -0.01, 0.01
    torch.testing.assert_close(moved.flatten(), expected, rtol=0, atol=1e-12)


def naive_attack(spec, scores, images, labels, epsilon, low, high, noise):
    """One image at a time, the loss spelled out, entry by entry projection."""
    out = []
    for image, label, start in zip(images, labels.tolist(), noise):
        current = image
        if spec.random_start:
            current = torch.clamp(image + epsilon * (2 * start - 1), low, high)
        for _ in range(spec.steps):
            x = current.clone().requires_grad_()
            row = scores(x[None])[0]
            if spec.loss == "margin":
                others = [row[c] for c in range(len(row)) if c != label]
                loss = -torch.clamp(row[label] - torch.stack(others).max() + 50, min=0)
            else:
                loss = -(row[label] - torch.logsumexp(row, 0))
            loss.backward()
            current = current + spec.step * epsilon * x.grad.sign()
            delta = (current - image).clamp(-epsilon, epsilon)
            current = (image + delta).clamp(low, high)
        out.append(current.detach())
    return torch.stack(out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-2.0, 0.5)])
def test_attacks_equal_plain_loops(name, low, high):
    model, images = network(), some_images(low=-1.0, high=1.0)
    noise = torch.rand(images.shape, generator=seeded()).double()
    expected = naive_attack(ATTACKS[name], model, images, LABELS, 0.1, low, high, noise)
    model.zero_grad()
    attacked = attack(name, model, images, LABELS, epsilon=0.1, low=low, high=high, generator=seeded())
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)
    assert attacked.min() >= low and attacked.max() <= high and not attacked.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_attacks_raise_their_loss_and_stay_in_the_ball(name):
    model, images = network(dtype=torch.float32), some_images(dtype=torch.float32, low=0.0, high=1.0)
    attacked = attack(name, model, images, LABELS, generator=seeded())
    assert (attacked - images).abs().max() <= EPSILON + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1
    loss = margin_loss if ATTACKS[name].loss == "margin" else lambda s, y: F.cross_entropy(s, y, reduction="none")
    assert (loss(model(attacked), LABELS) > loss(model(images), LABELS)).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_attacked_alike_in_every_batch(name):
    model, images = network(), some_images()
    spec = replace(ATTACKS[name], steps=2)  # so few that the start is still to be seen
    whole = attack(spec, model, images, LABELS, generator=seeded())
    generator = seeded()
    parts = [attack(spec, model, images[i:j], LABELS[i:j], generator=generator) for i, j in ((0, 1), (1, 4))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    again = attack(spec, model, images, LABELS, generator=seeded())
    assert torch.equal(whole, again)
    other = attack(spec, model, images, LABELS, generator=seeded(8))
    assert torch.equal(whole, other) == (not spec.random_start)


def test_random_starts_fill_the_ball_evenly():
    images = torch.full((200, *SHAPE), 0.5, dtype=torch.float64)
    spec = AttackSpec("margin", 1, 0.0, True)
    moved = attack(spec, network(), images, torch.zeros(200, dtype=torch.long), 0.1, generator=seeded()) - images
    quantiles = torch.quantile(moved.flatten(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    expected = torch.tensor([-0.1, -0.05, 0.0, 0.05, 0.1], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_of_the_caller_changes(name, outside):
    model, images, labels = network(), some_images(), LABELS.clone()
    expected = attack(name, model, images, labels, generator=seeded())
    before = images.clone()
    with outside():
        inside = images * 1
        attacked = attack(name, model, inside, labels, generator=seeded())
        assert torch.equal(inside, before) and torch.equal(attacked, expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad and torch.equal(labels, LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_no_images_and_a_ball_of_nothing(name):
    model, images = network(classes=1), some_images()
    attacked = attack(name, model, images, torch.zeros(4, dtype=torch.long), epsilon=0.1)
    assert torch.isfinite(attacked).all() and (attacked - images).abs().max() <= 0.1 + 1e-12
    assert attack(name, network(), images[:0], LABELS[:0]).shape == (0, *SHAPE)
    assert torch.equal(attack(name, network(), images, LABELS, epsilon=0.0), images)


def test_margin_loss_by_hand_and_its_cap():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 80.0, 10.0]], requires_grad=True)
    loss = margin_loss(scores, torch.tensor([0, 0]))
    assert loss.tolist() == [-1.0, 50.0]
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]  # beyond the confidence nothing pulls
    assert margin_loss(torch.tensor([[4.0]]), torch.tensor([0])).tolist() == [-4.0]


def test_authors_space_leaves_the_ball_by_the_clamp_alone():
    model, images = network(), some_images(low=-2.0, high=2.0)
    attacked = attack("PGD-20", model, images, LABELS, epsilon=0.1, generator=seeded())
    below, above = images < -0.1, images > 1.1
    assert below.any() and above.any()
    assert (attacked[below] == 0).all() and (attacked[above] == 1).all()
    inside = (images >= 0.1) & (images <= 0.9)
    assert (attacked - images)[inside].abs().max() <= 0.1 + 1e-12


def test_pixel_space_normalises_inside():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    model, pixels = network(), some_images()
    normalised = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(pixel_space(model, mean, std)(pixels), model(normalised), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_pixels(normalised, mean, std), pixels, rtol=1e-12, atol=1e-12)
    assert to_pixels(torch.full((1, *SHAPE), 9.0), mean, std).max() == 1
    attacked = attack("FGSM", pixel_space(model, mean, std), pixels, LABELS)
    assert not torch.equal(attacked, attack("FGSM", model, pixels, LABELS))


def test_half_precision_scores_are_widened():
    model, images = network(dtype=torch.float32), some_images(dtype=torch.float32)
    attacked = attack("PGD-20", lambda x: model(x).bfloat16(), images, LABELS, generator=seeded())
    assert attacked.dtype == torch.float32 and (attacked - images).abs().max() <= EPSILON + 1e-6


def test_refusals():
    model, images = network(), some_images()
    for changes, message in (
        ({"spec": "pgd20"}, r"unknown attack 'pgd20'.* Did you mean 'PGD-20'"),
        ({"spec": AttackSpec("mse", 1, 1.0, False)}, "raises one of cross_entropy, margin"),
        ({"epsilon": -0.1}, "epsilon must be at least 0 and low under high"),
        ({"labels": LABELS[:3]}, r"4 images need labels \[4\]"),
        ({"scores": torch.no_grad()(model)}, "no gradient to the images"),
        ({"scores": lambda x: model(x)[:2]}, r"must be \[4, C\]"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(**{"spec": "FGSM", "scores": model, "images": images, "labels": LABELS, **changes})
