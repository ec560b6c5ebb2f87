"""CLIP-Adapter against the authors' program: a bottleneck on image features.

Covers: adapted features, scores, losses, gradients and three steps of SGD by the trainer's own steps on the small CLIP,
from a published checkpoint; an adapter of normalised features, a mistake, is seen.
"""

import pytest
import torch.nn.functional as F

from tests.trainers.golden_runs import CLOSE, batch_of, close, far, golden, golden_trainer, part, publish, same_change


def test_scores_losses_gradients_and_steps_are_the_authors(tmp_path):
    arrays = golden("clip_adapter")
    publish(arrays, tmp_path)
    settings = {"TEMPLATES": str(arrays["template"]), "RATIO": float(arrays["ratio"])}
    trainer = golden_trainer("CLIPAdapter", arrays, tmp_path, settings, {"LR": 0.01, "WARMUP_EPOCH": 0})
    features = trainer.features.encode(arrays["images"])
    close(features, arrays["image_features"], CLOSE)
    close(trainer.model.fc(features), arrays["adapter_out"], CLOSE)
    close(trainer.feature_logits(features), arrays["logits"], CLOSE)
    close(trainer.cosine_logits(trainer.content(features), trainer.class_proxies()), arrays["logits"], CLOSE)
    far(trainer.model(F.normalize(features, dim=-1)), trainer.model(features), 0.1)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        assert summary["loss"] == pytest.approx(float(arrays["sgd_losses"][step]), rel=CLOSE)
        if step == 0:
            for name, value in trainer.model.named_parameters():
                close(value.grad, arrays[f"grad/{name}"], 5e-4, name)
    for name, value in part(arrays, "start/").items():
        same_change(trainer.model.state_dict()[name], value, arrays[f"sgd3/{name}"], name)
