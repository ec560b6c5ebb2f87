"""TaskRes against the authors' program: a learned residual on text features.

Covers: base, scores, losses, gradient and three steps of Adam by the trainer's own steps on the small CLIP, from a
published checkpoint; a base of normalised text features, a mistake, is seen; an enhanced base of a checkpoint is used.
"""

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.trainers.taskres import mean_text_features
from tests.trainers.golden_runs import CLOSE, batch_of, close, far, golden, golden_trainer, publish, same_change

RESIDUAL = "text_feature_residuals"


def built(folder, base=None):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden("taskres")
    # The program keeps the underscores of names; here they count as blanks, so these names have none.
    arrays["classnames"] = [name.replace("_", "") for name in arrays["classnames"]]
    publish(arrays, folder, base_text_features=arrays["base_text_features"] if base is None else base)
    settings = {"TEMPLATES": [str(template) for template in arrays["templates"]], "ALPHA": float(arrays["scale"])}
    optim = {"NAME": "adam", "LR": 2e-3, "WARMUP_EPOCH": 0}
    return arrays, golden_trainer("TaskRes", arrays, folder, settings, optim)


def test_scores_losses_gradient_and_steps_are_the_authors(tmp_path):
    arrays, trainer = built(tmp_path)
    text = trainer.backbone.text
    base = mean_text_features(text, trainer.classnames, trainer.templates)
    close(base, arrays["base_text_features"], CLOSE)
    each = [mean_text_features(text, trainer.classnames, [template]) for template in trainer.templates]
    far(torch.stack([F.normalize(features, dim=-1) for features in each]).mean(0), base, 0.5)
    close(trainer.feature_logits(trainer.features.encode(arrays["images"])), arrays["logits"], CLOSE)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        assert summary["loss"] == pytest.approx(float(arrays["adam_losses"][step]), rel=CLOSE)
        if step == 0:
            close(trainer.model.text_feature_residuals.grad, arrays[f"grad/{RESIDUAL}"], 5e-4)
    same_change(trainer.model.text_feature_residuals, arrays[f"start/{RESIDUAL}"], arrays[f"adam3/{RESIDUAL}"])


def test_the_base_of_a_checkpoint_counts_since_it_may_be_an_enhanced_one(tmp_path):
    base = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    arrays, trainer = built(tmp_path, base.half())
    expected = base.half().float() + 0.5 * arrays[f"start/{RESIDUAL}"]
    torch.testing.assert_close(trainer.class_proxies(), expected)
