"""KgCoOp against the authors' program: a published checkpoint, loss, gradient and steps, and a run and its table.

Covers: outputs of the authors' module on the small CLIP (fixtures/goldens/kgcoop.npz); the factor two between the
program's distance and the paper's; a distance that takes features as the tower gives them; runs, base to new.
"""

import pytest
import torch

from dassl_clip.trainers.kgcoop import cosine_distance
from tests.trainers.golden_runs import batch_of, close, far, golden, golden_trainer, part, publish


@pytest.fixture
def kgcoop(tmp_path):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden("kgcoop")
    unused = {"bias_vectors": torch.ones(1, 512), "meta_net.linear1.weight": torch.ones(32, 512)}
    publish(arrays, tmp_path, token_prefix=torch.zeros(9, 1, 48), token_suffix=torch.zeros(9, 5, 48), **unused)
    settings = {"TEMPLATES": str(arrays["template"]), "DISTANCE_WEIGHT": float(arrays["W"])}
    return arrays, golden_trainer("KgCoOp", arrays, tmp_path, settings, {"LR": 0.02, "WARMUP_EPOCH": 0})


def test_scores_loss_gradient_and_steps_are_the_authors(kgcoop):
    arrays, trainer = kgcoop
    close(trainer.hand_features, arrays["hand_text_features"], 1e-4)
    features = trainer.features.encode(arrays["images"])
    trainer.before_test()
    close(trainer.feature_logits(features), arrays["logits"], 1e-4)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        close(summary["loss"], arrays["sgd_losses"][step], 1e-4, "loss")
        if step == 0:
            close(summary["distance"], arrays["distance"], 1e-4)
            close(trainer.model.ctx.grad, arrays["grad/ctx"], 5e-4)
    start = part(arrays, "start/")["ctx"]
    close(trainer.model.ctx.detach() - start, arrays["sgd3/ctx"] - start, 5e-4)


def test_the_context_starts_from_the_words(tmp_path):
    arrays = golden("kgcoop")
    close(golden_trainer("KgCoOp", arrays, tmp_path).model.ctx.detach(), arrays["ctx_from_words"], 1e-6)


def test_the_programs_distance_is_half_of_the_papers_and_the_mistake_shows(kgcoop):
    arrays, trainer = kgcoop
    text, hand = trainer.class_proxies(), trainer.hand_features
    close((text - hand).square().sum(1).mean() / 2, arrays["distance"], 1e-4)
    close(cosine_distance(text, hand), arrays["distance"], 1e-4)
    raw = trainer.model(trainer.backbone.text, trainer.classes)
    far(cosine_distance(raw, hand), arrays["distance"], 0.01)


def test_a_run_serves_new_classes(run):
    base, record, _ = run("KgCoOp", "DATASET.SUBSAMPLE_CLASSES", "base", name="base")
    assert record["losses"].keys() == {"loss", "ce", "distance"} and "near a photo of a {}." in record["prompt"]
    flags = ("--eval-only", "--model-dir", str(base))
    _, record, _ = run("KgCoOp", "DATASET.SUBSAMPLE_CLASSES", "new", name="new", flags=flags)
    assert record["metrics"]["test"]["total"] == 10
