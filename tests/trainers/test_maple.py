"""MaPLe against the authors' program: a published checkpoint, loss, gradients and steps; runs, InMaP on it, exports.

Covers: outputs of the authors' module on the small CLIP (fixtures/goldens/maple.npz), whose prompt is two learned
tokens and the fixed words "of a"; deliberate mistakes that must show; refusals; base to new.
"""

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.cli.__main__ import main
from dassl_clip.engine.export import load_export
from dassl_clip.results.errors import UserError
from tests.trainers.golden_runs import batch_of, close, far, golden, golden_trainer, part, publish

LEARNER = "prompt_learner."


def settings_of(arrays):
    return {
        "N_CTX": int(arrays["N_CTX"]),
        "PROMPT_DEPTH": int(arrays["PROMPT_DEPTH"]),
        "CTX_INIT": str(arrays["CTX_INIT"]),
    }


@pytest.fixture
def maple(tmp_path):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden("maple")
    towers = {"image_encoder.conv1.weight": torch.ones(2), "text_encoder.ln_final.bias": torch.ones(2)}
    buffers = {f"{LEARNER}token_prefix": torch.zeros(9, 1, 48), f"{LEARNER}token_suffix": torch.zeros(9, 15, 48)}
    publish(arrays, tmp_path, logit_scale=torch.tensor(4.6), **towers, **buffers)
    return arrays, golden_trainer("MaPLe", arrays, tmp_path, settings_of(arrays), {"LR": 0.05, "WARMUP_EPOCH": 0})


def test_features_loss_gradients_and_steps_are_the_authors(maple):
    arrays, trainer = maple
    assert trainer.fixed.shape == (2, 48)
    trainer.before_test()
    close(trainer.classifier, F.normalize(arrays["text_features"], dim=-1), 1e-4)
    close(trainer.image_features(arrays["images"]), F.normalize(arrays["image_features"], dim=-1), 1e-4)
    close(trainer.model_inference(arrays["images"]), arrays["logits"], 1e-4)
    for step in range(3):
        summary = trainer.forward_backward(batch_of(arrays))
        close(summary["loss"], arrays["sgd_losses"][step], 1e-4, "loss")
        if step == 0:
            for name, value in trainer.model.named_parameters():
                close(value.grad, arrays[f"grad/{LEARNER}{name}"], 5e-4, name)
    for name, value in part(arrays, f"start/{LEARNER}").items():
        close(trainer.model.state_dict()[name] - value, arrays[f"sgd3/{LEARNER}{name}"] - value, 5e-4, name)


def test_the_start_is_the_authors(tmp_path):
    arrays = golden("maple")
    model = golden_trainer("MaPLe", arrays, tmp_path, settings_of(arrays)).model
    close(model.ctx.detach(), arrays["ctx_from_words"], 1e-6)
    first, *others = model.compound_prompt_projections
    assert others and all(torch.equal(first.weight, other.weight) for other in others)
    assert not torch.equal(first.weight, model.proj.weight)
    assert all(0.012 < float(prompt.detach().std()) < 0.028 for prompt in model.compound_prompts_text)


def test_mistakes_on_purpose_show(maple):
    arrays, trainer = maple
    text, images = trainer.backbone.text, arrays["images"]
    context, deep = trainer.model.for_text()
    whole = torch.cat([context, trainer.fixed])
    expected = arrays["text_features"]
    close(text.encode_prompts(whole, trainer.classes, deep=deep), expected, 1e-4)
    with_positions = deep + text.positional_embedding[1 : 1 + len(context)]
    far(text.encode_prompts(whole, trainer.classes, deep=with_positions), expected, 0.1)
    far(text.encode_prompts(whole, trainer.classes, deep=torch.cat([deep[:1], deep])), expected, 0.1)  # a layer late
    far(text.encode_prompts(whole, trainer.classes, deep=deep[:1]), expected, 0.1)
    norm, tokens = trainer.backbone.model.visual.ln_pre, trainer.model.for_vision()
    embed = trainer.backbone.embed_image
    close(embed(images, False, tokens), arrays["image_features"], 1e-4)
    far(embed(images, False, [tokens[0], *map(norm, tokens[1:])]), arrays["image_features"], 0.05)
    far(embed(images, False, tokens[:1]), arrays["image_features"], 0.05)


def test_a_run_serves_new_classes_and_inmap_refines_it(run, tmp_path):
    keys = ("TRAINER.MAPLE.PROMPT_DEPTH", 2)
    base, record, _ = run("MaPLe", *keys, "DATASET.SUBSAMPLE_CLASSES", "base", name="base")
    assert record["learned"].keys() == {"MultiModalPromptLearner"}
    flags = ("--eval-only", "--model-dir", str(base))
    _, record, _ = run("MaPLe", *keys, "DATASET.SUBSAMPLE_CLASSES", "new", name="new", flags=flags)
    assert record["metrics"]["test"]["total"] == 10
    folder, _, _ = run("MaPLe", *keys, name="maple")
    _, refined, _ = run("InMaP", "TRAINER.INMAP.FROM", str(folder), name="refined")
    assert refined["metrics"]["test"]["total"] == 30
    assert main(["export", str(folder), "--out", str(tmp_path / "run.safetensors")]) == 0
    export = load_export(tmp_path / "run.safetensors")
    assert export.classifier is None and "reads learned tokens" in export.note


def test_the_text_side_alone_is_a_classifier_of_clips_own_features(run, tmp_path):
    keys = ("TRAINER.MAPLE.PROMPT_DEPTH", 2, "TRAINER.MAPLE.IMAGE_PROMPTS", False)
    folder, record, _ = run("MaPLe", *keys, name="maple")
    assert "layers of the text tower" in record["prompt"]
    assert main(["export", str(folder), "--out", str(tmp_path / "run.safetensors")]) == 0
    export = load_export(tmp_path / "run.safetensors")
    assert set(export.learned["MultiModalPromptLearner"]) == {"ctx", "compound_prompts_text.0"}
    assert export.classifier.shape == (3, 16)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (("PROMPT_DEPTH", 5), "the text tower has 3 layers, so a prompt depth is 1 to 3, got 5"),
        (("PROMPT_DEPTH", 2, "N_CTX", 6), "6 context tokens are to start from CTX_INIT 'a photo of a', which has 4"),
    ],
)
def test_refusals(run, keys, sentence):
    pairs = [f"TRAINER.MAPLE.{word}" if isinstance(word, str) else word for word in keys]
    _, _, output = run("MaPLe", *pairs, code=2)
    assert sentence in output.err


def test_a_checkpoint_of_another_depth_is_refused_in_a_line(tmp_path):
    arrays = golden("maple")
    publish(arrays, tmp_path)
    with pytest.raises(UserError, match=r"published.pth does not fit this trainer: .*missing compound_prompts_text.2"):
        golden_trainer("MaPLe", arrays, tmp_path, settings_of(arrays) | {"PROMPT_DEPTH": 4})
