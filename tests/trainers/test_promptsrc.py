"""PromptSRC against the authors' program: a published checkpoint, loss terms, gradients, epochs and their average.

Covers: outputs of the authors' module on the small CLIP (fixtures/goldens/promptsrc.npz), with prompts of different
length and depth in the two towers; deliberate mistakes that must show; a run that is resumed has the whole average.
"""

import shutil

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.trainers.promptsrc import gaussian_weights, published_state, regulation_terms
from tests.trainers.golden_runs import batch_of, close, far, golden, golden_trainer, part, publish


def templates_of(arrays):
    """The golden's templates, with plain ids for words and `{}` where the first class's tokens stand."""
    end, lead = int(arrays["tokens"].max()), len(str(arrays["CTX_INIT"]).split())
    name = arrays["tokens"][0].tolist()
    name = name[1 + lead : name.index(end) - 1]  # the full stop follows it
    texts = []
    for row in arrays["template_tokens"][:, 0].tolist():
        ids = row[1 : row.index(end)]
        at = next(k for k in range(len(ids)) if ids[k : k + len(name)] == name)
        words = [f"#{number}" for number in ids]
        texts.append(" ".join([*words[:at], "{}", *words[at + len(name) :]]))
    return texts


@pytest.fixture
def promptsrc(tmp_path):
    """The golden file, and a trainer that has loaded its start from a published checkpoint."""
    arrays = golden("promptsrc")
    unread = {
        "prompt_learner.token_prefix": torch.zeros(9, 1, 48),
        "prompt_learner.ZS_image_encoder.conv1.weight": torch.ones(2),
        "image_encoder.conv1.weight": torch.ones(2),
        "text_encoder.ln_final.bias": torch.ones(2),
    }
    publish(arrays, tmp_path, **unread)
    keys = ("N_CTX_TEXT", "N_CTX_VISION", "PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION")
    settings = {key: int(arrays[key]) for key in keys}
    settings |= {key: float(arrays[key]) for key in ("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "GPA_MEAN", "GPA_STD")}
    settings |= {"TEMPLATES": templates_of(arrays), "CTX_INIT": str(arrays["CTX_INIT"])}
    optim = {"LR": 0.02, "WARMUP_EPOCH": 0}
    trainer = golden_trainer("PromptSRC", arrays, tmp_path, settings, optim, epochs=int(arrays["MAX_EPOCH"]))
    return arrays, trainer


def test_loss_terms_and_gradients_are_the_authors(promptsrc):
    arrays, trainer = promptsrc
    close(trainer.teacher_text, arrays["teacher_text_normalised"], 1e-4)
    terms, weights, tensors = trainer.loss_terms(arrays["images"], arrays["labels"])
    close(tensors["text features"].detach(), arrays["text_features_normalised"], 1e-4)
    close(tensors["image features"].detach(), arrays["image_features_normalised"], 1e-4)
    close(tensors["teacher's"], arrays["teacher_image_normalised"], 1e-4)
    close(tensors["logits"].detach(), arrays["logits"], 1e-4)
    for name, key in (("ce", "loss_ce"), ("text", "l1_text"), ("image", "l1_image")):
        close(terms[name].detach(), arrays[key], 1e-4, name)
    close(terms["scores"].detach() * arrays["logits"].numel(), arrays["kl_sum"], 1e-4, "divergence")
    loss = sum(weights[name] * term for name, term in terms.items())
    close(loss.detach(), arrays["loss"], 1e-4, "loss")
    loss.backward()
    gradients = published_state(part(arrays, "grad/"))
    for name, value in trainer.model.named_parameters():
        close(value.grad, gradients[name], 5e-4, name)


def test_epochs_and_their_average_are_the_authors(promptsrc, monkeypatch):
    arrays, trainer = promptsrc
    weights = gaussian_weights(trainer.max_epoch, float(arrays["GPA_MEAN"]), float(arrays["GPA_STD"]))
    close(weights, arrays["gauss"], 1e-6)
    monkeypatch.setattr("dassl_clip.engine.trainer.CLIPTrainer.after_epoch", lambda trainer: None)
    start = published_state(part(arrays, "start/"))
    for epoch in range(trainer.max_epoch):
        trainer.epoch = epoch
        summary = trainer.forward_backward(batch_of(arrays))  # a batch an epoch, at one rate
        close(summary["loss"], arrays["gpa_losses"][epoch], 1e-4, "loss")
        trainer.after_epoch()
        trainer.after_epoch()  # as after a stop at the end of an epoch: nothing counts twice
        last = epoch + 1 == trainer.max_epoch
        expected = published_state(part(arrays, "gpa/" if last else f"epoch{epoch + 1}/"))
        for name, value in trainer.model.named_parameters():
            close(value.detach() - start[name], expected[name] - start[name], 5e-4, name)


def test_mistakes_on_purpose_show(promptsrc):
    arrays, trainer = promptsrc
    texts = arrays["template_tokens"].flatten(0, 1)
    each = F.normalize(trainer.backbone.text.encode(texts), dim=-1).unflatten(0, arrays["template_tokens"].shape[:2])
    far(F.normalize(each.mean(0), dim=-1), arrays["teacher_text_normalised"], 0.01)
    features, text = arrays["image_features_normalised"], arrays["text_features_normalised"]
    teacher = arrays["teacher_image_normalised"], arrays["teacher_text_normalised"]
    scale, count = trainer.logit_scale, arrays["logits"].numel()
    close(regulation_terms(features, text, *teacher, scale)["scores"] * count, arrays["kl_sum"], 1e-4)
    far(regulation_terms(*teacher, features, text, scale)["scores"] * count, arrays["kl_sum"], 0.006)  # reversed


def test_the_templates_are_sixty():
    texts = resolve_templates("imagenet60")
    assert len(set(texts)) == 60 and "a photo of a {}." in texts and texts == resolve_templates("imagenet80")[:60]


KEYS = (
    *("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2),
    *("TRAINER.PROMPTSRC.GPA_MEAN", 2.0, "TRAINER.PROMPTSRC.GPA_STD", 2.0, "OPTIM.MAX_EPOCH", 3),
    *("TRAIN.CHECKPOINT_FREQ", 1, "TRAINER.PROMPTSRC.TEMPLATES", "inmap7"),
)


def test_a_resumed_run_ends_with_the_same_average(run):
    whole, record, _ = run("PromptSRC", *KEYS, name="whole")
    assert record["losses"].keys() == {"loss", "ce", "text", "image", "scores"}
    torn = shutil.copytree(whole, whole.with_name("torn"))
    folder = torn / "VLPromptLearner"
    for epoch in (2, 3):  # as if the run had died in its second epoch
        (folder / checkpoint.epoch_name(epoch)).unlink()
    (folder / "checkpoint").write_text(checkpoint.epoch_name(1) + "\n")
    (torn / "record.json").unlink()
    run("PromptSRC", *KEYS, name="torn")
    states = [
        checkpoint.load_checkpoint(place / "VLPromptLearner" / checkpoint.epoch_name(3))["state_dict"]
        for place in (whole, torn)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert float(states[0]["average.weight"]) == pytest.approx(1) and int(states[0]["average.epochs"]) == 3
    weights, sums = gaussian_weights(3, 2.0, 2.0), 0
    for epoch in (1, 2):
        own = checkpoint.load_checkpoint(whole / "VLPromptLearner" / checkpoint.epoch_name(epoch))["state_dict"]
        sums = sums + weights[epoch - 1] * own["ctx"]
    third = (states[0]["ctx"] - sums) / weights[2]  # the prompts of the last epoch: near those of the second
    assert 0 < (third - own["ctx"]).abs().max() < 0.2


def test_a_run_serves_new_classes(run):
    base, _, _ = run("PromptSRC", *KEYS, "DATASET.SUBSAMPLE_CLASSES", "base", name="base")
    flags = ("--eval-only", "--model-dir", str(base))
    _, record, _ = run("PromptSRC", *KEYS, "DATASET.SUBSAMPLE_CLASSES", "new", name="new", flags=flags)
    assert record["metrics"]["test"]["total"] == 10
