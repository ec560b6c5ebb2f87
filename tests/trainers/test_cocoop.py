"""CoCoOp against the authors' program: a published checkpoint, loss, gradients and steps; runs, and what refines them.

Covers: outputs of the authors' module on the small CLIP (fixtures/goldens/cocoop.npz); a batch scored in parts and in
chunks of classes; fixed views that are encoded once; base to new; InMaP on its per-image text features; exports.
"""

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.cli.__main__ import main
from dassl_clip.clip.finite import finite_rows
from dassl_clip.engine import conditioned
from dassl_clip.engine.export import load_export
from tests.trainers.golden_runs import batch_of, close, far, golden, golden_trainer, part, publish


@pytest.fixture
def cocoop(tmp_path):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden("cocoop")
    publish(arrays, tmp_path, token_prefix=torch.zeros(9, 1, 48), token_suffix=torch.zeros(9, 13, 48))
    return arrays, golden_trainer("CoCoOp", arrays, tmp_path, {}, {"LR": 0.02, "WARMUP_EPOCH": 0})


def test_scores_loss_gradients_and_steps_are_the_authors(cocoop):
    arrays, trainer = cocoop
    features = trainer.features.encode(arrays["images"])
    close(F.normalize(features, dim=-1), arrays["image_features_normalised"], 1e-4)
    shifts = trainer.model(F.normalize(features, dim=-1)) - trainer.model.ctx
    close(shifts, arrays["meta_bias"][:, None].expand_as(shifts), 1e-4)
    close(trainer.feature_logits(features), arrays["logits"], 1e-4)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        close(summary["loss"], arrays["sgd_losses"][step], 1e-4, "loss")
        if step == 0:
            for name, value in trainer.model.named_parameters():
                close(value.grad, arrays[f"grad/{name}"], 5e-4, name)
    for name, value in part(arrays, "start/").items():
        close(trainer.model.state_dict()[name] - value, arrays[f"sgd3/{name}"] - value, 5e-4, name)


def test_features_that_are_not_normalised_show(cocoop):
    arrays, trainer = cocoop
    features = trainer.features.encode(arrays["images"])
    shift = trainer.model(features) - trainer.model.ctx
    far(shift[:, 0], arrays["meta_bias"], 0.01)


def test_images_and_classes_in_parts_give_the_same(cocoop, monkeypatch):
    arrays, trainer = cocoop
    features = trainer.features.encode(arrays["images"])
    whole = trainer.feature_logits(features)
    sizes = []
    compared = trainer.compared
    monkeypatch.setattr(trainer, "compared", lambda rows: sizes.append(len(rows)) or compared(rows))
    monkeypatch.setattr(conditioned, "activation_budget", lambda device: 16 * 2 * 5 * 32 * 4)
    trainer.backbone.text.memory_budget = 1
    close(trainer.feature_logits(features), whole, 1e-5)
    assert sizes == [2, 2]


def test_a_run_serves_new_classes_and_a_fixed_view_is_encoded_once(run):
    base, record, output = run("CoCoOp", "DATASET.SUBSAMPLE_CLASSES", "base", name="base")
    assert "images are encoded once" in output.out and "shifted for each image" in record["prompt"]
    flags = ("--eval-only", "--model-dir", str(base))
    _, record, _ = run("CoCoOp", "DATASET.SUBSAMPLE_CLASSES", "new", name="new", flags=flags)
    assert record["metrics"]["test"]["total"] == 10


def test_inmap_refines_it_and_its_export_says_that_no_classifier_serves_all_images(run, tmp_path):
    folder, record, _ = run("CoCoOp", name="cocoop")
    _, refined, _ = run("InMaP", "TRAINER.INMAP.FROM", str(folder), name="refined")
    assert refined["metrics"]["test"]["total"] == record["metrics"]["test"]["total"] == 30
    assert main(["export", str(folder), "--out", str(tmp_path / "run.safetensors")]) == 0
    export = load_export(tmp_path / "run.safetensors")
    assert export.classifier is None and "depend on that image" in export.note
    assert all(bool(finite_rows(value[None])) for value in export.learned["prompt_learner"].values())
