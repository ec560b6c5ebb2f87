"""ProLIP against the authors' program: a learned last projection of the image tower.

Covers: logits, gradients, rates and views of every step, the final projection and test logits; mistakes that are seen
(another eps, the first view first); what comes before the projection, of a ViT and a ResNet, against the towers' own
features; penalties; published names.
"""

import pytest
import torch

from dassl_clip.clip.backbone import load_backbone
from dassl_clip.results.errors import UserError
from dassl_clip.trainers import ProLIP
from dassl_clip.trainers.prolip import Projector, parse_penalty, trained_steps
from tests.trainers.golden_runs import CLOSE, CLOSE_CHANGE, close, golden, same_change


class Seen(list):
    """Views that note in which order they are asked for."""

    def __init__(self, views):
        super().__init__(views)
        self.order = []

    def __getitem__(self, number):
        self.order.append(number)
        return super().__getitem__(number)


def settings(arrays):
    return {"penalty": float(arrays["lam"]), "lr": float(arrays["lr"]), "eps": float(arrays["eps"])}


def fit(arrays, views=None, **changed):
    projector = Projector(arrays["proj_start"])
    views = arrays["views"] if views is None else views
    steps = trained_steps(
        projector, views, arrays["labels"], arrays["text"], steps=int(arrays["epochs"]), **settings(arrays) | changed
    )
    return projector, steps


def test_every_step_is_that_of_the_authors_program():
    arrays = golden("prolip")
    views = Seen(arrays["views"])
    projector, steps = fit(arrays, views)
    for number, view in enumerate(arrays["view_order"].tolist()):
        logits = 100 * projector(arrays["views"][view]) @ arrays["text"].T
        close(logits, arrays["train_logits"][number], CLOSE)
        loss = next(steps)
        if number < 2:
            close(projector.vit_proj.grad, arrays["grad_second" if number else "grad_first"], CLOSE_CHANGE)
    assert next(steps, None) is None and views.order == arrays["view_order"].tolist()
    assert loss == pytest.approx(float(arrays["last_loss"]), rel=CLOSE)
    same_change(projector.vit_proj, arrays["proj_start"], arrays["proj_end"])
    close(100 * projector(arrays["test_before"]) @ arrays["text"].T, arrays["test_logits"], CLOSE)


@pytest.mark.parametrize("mistake", ["eps", "view"])
def test_known_mistakes_are_seen(mistake):
    arrays = golden("prolip")
    changed = {"eps": 1e-8} if mistake == "eps" else {"views": arrays["views"].roll(1, 0)}
    projector, steps = fit(arrays, **changed)
    list(steps)
    with pytest.raises(AssertionError):
        same_change(projector.vit_proj, arrays["proj_start"], arrays["proj_end"])


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_what_comes_before_the_projection_gives_the_towers_features(name):
    clip = load_backbone(f"{name}:random")
    projection = clip.projection()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows = clip.encode_unprojected(images, projection)
    assert rows.shape == (2, len(projection.weight)) and (projection.bias is None) == (name != "RN50")
    close(Projector(projection.weight, projection.bias)(rows), clip.encode_image(images), 1e-5)


def test_penalties_are_numbers_or_follow_from_the_shots():
    assert [parse_penalty(value, 4) for value in ("1/K", "1/K^2", 0.5, "0.01", 0)] == [0.25, 0.0625, 0.5, 0.01, 0]
    for value in ("K", -1, "nan"):
        with pytest.raises(UserError, match="LAMBDA holds"):
            parse_penalty(value, 4)


def test_the_authors_checkpoints_have_their_names():
    method = ProLIP.__new__(ProLIP)
    weight = torch.randn(3, 5)
    assert torch.equal(method.published_state({"linear.weight": weight, "linear.bias": weight})["vit_proj"], weight.T)
    assert method.published_state({"vit_proj": weight})["vit_proj"] is weight
