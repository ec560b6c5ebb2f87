"""ProGrad against the authors' program: both terms, their gradients, the direction that is taken, and three steps.

Covers: outputs of the authors' module on the small CLIP (fixtures/goldens/prograd_*.npz), where the two gradients agree
and where they do not; the context's start; a run.
"""

import pytest
import torch

from dassl_clip.results.errors import UserError
from dassl_clip.trainers.prograd import conflict_weight, words_at_the_end
from tests.trainers.golden_runs import batch_of, close, far, golden, golden_trainer, part, publish


@pytest.fixture(params=["prograd_agree", "prograd_conflict"])
def prograd(request, tmp_path):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden(request.param)
    publish(arrays, tmp_path, token_prefix=torch.zeros(9, 1, 48))
    settings = {"N_CTX": int(arrays["N_CTX"]), "LAMBDA": float(arrays["LAMBDA"]), "TEMPERATURE": float(arrays["T"])}
    settings["TEMPLATES"] = str(arrays["template"])
    return arrays, golden_trainer("ProGrad", arrays, tmp_path, settings, {"LR": 0.02, "WARMUP_EPOCH": 0})


def test_terms_direction_and_steps_are_the_authors(prograd):
    arrays, trainer = prograd
    features = trainer.features.encode(arrays["images"])
    hand = torch.nn.functional.normalize(features, dim=-1) @ trainer.hand_features.T
    close(trainer.logit_scale * hand, arrays["zero_shot_logits"], 1e-4)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        if step == 0:
            close(summary["ce"], arrays["xe"], 1e-4)
            close(summary["divergence"], arrays["kl"], 1e-4)
            close(trainer.model.ctx.grad, arrays["grad_used/ctx"], 5e-4)
    start = part(arrays, "start/")["ctx"]
    close(trainer.model.ctx.detach() - start, arrays["sgd3/ctx"] - start, 5e-4)


def test_the_weight_of_the_conflict(prograd):
    arrays, _ = prograd
    gradient, other = arrays["grad_xe/ctx"], arrays["grad_kl/ctx"]
    weight = conflict_weight(gradient, other, float(arrays["LAMBDA"]))
    assert (weight > 0) == (float(arrays["cosine"]) < 0)
    close(gradient + weight * other, arrays["grad_used/ctx"], 5e-4)
    if weight:
        far(gradient, arrays["grad_used/ctx"], 0.01)


def test_the_context_ends_with_the_words(tmp_path):
    arrays = golden("prograd_agree")
    settings = {"N_CTX": int(arrays["N_CTX"]), "TEMPLATES": str(arrays["template"])}
    trainer = golden_trainer("ProGrad", arrays, tmp_path, settings)
    close(trainer.model.ctx.detach(), arrays["ctx_initial"], 1e-6)
    with pytest.raises(UserError, match=r"'a photo of a' have 4 tokens, and the context has 3"):
        words_at_the_end(trainer.backbone.text, "a photo of a", 3)


def test_a_run(run):
    _, record, _ = run("ProGrad", "TRAINER.PROGRAD.N_CTX", 5)
    assert record["losses"].keys() == {"loss", "ce", "divergence"} and "not against" in record["prompt"]
