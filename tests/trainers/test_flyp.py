"""FLYP against the authors' program (fixtures/goldens/flyp.npz), by the trainer's own steps on the small CLIP.

Covers: features, the loss of a batch with duplicates and both variants of it, gradients, rates, losses and weights of
all steps over both towers, the head at the test; the loss over classes against a naive loop; equal captions encoded
once; the mistake of duplicates as positives; real runs, their scale and their warning.
"""

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.trainers.flyp import contrastive_loss
from tests.trainers.golden_runs import CLOSE, batch_of, close, far, golden, golden_trainer, part


def ours(name):
    if name == "logit_scale":
        return name
    return f"tower.{name.removeprefix('visual.')}" if name.startswith("visual.") else f"text.{name}"


def started(tmp_path, **settings):
    """The golden file, and a trainer before its first step."""
    arrays = golden("flyp")

    def prepare(trainer):
        trainer.steps, trainer.num_source_domains = int(arrays["total_steps"]), 1
        trainer.lengths = [trainer.steps]
        trainer.backbone.logit_scale.copy_(arrays["logit_scale_start"].exp())

    optim = {"NAME": "adamw", "LR": float(arrays["lr"]), "WEIGHT_DECAY": float(arrays["wd"])}
    settings = {"WARMUP": int(arrays["warmup"])} | settings
    trainer = golden_trainer("FLYP", golden("clip_lora"), tmp_path, settings, optim, prepare=prepare)
    trainer.tokens = arrays["tokens"].long()
    trainer.num_classes = len(trainer.tokens)
    return arrays, trainer


def step(arrays, trainer, number):
    trainer.draw_templates = lambda count: arrays["template"][number].long()
    trainer.batch_idx = number
    return trainer.forward_backward(
        batch_of({"images": arrays["images"][number].float(), "labels": arrays["labels"][number]})
    )


def test_every_step_over_both_towers_is_that_of_the_authors_program(tmp_path):
    arrays, trainer = started(tmp_path)
    start = {name: value.detach().clone() for name, value in trainer.weights.items()}
    for number in range(int(arrays["total_steps"])):
        loss = step(arrays, trainer, number)["loss"]
        assert loss == pytest.approx(float(arrays["losses"][number]), rel=CLOSE)
        assert trainer.optim.param_groups[0]["lr"] == pytest.approx(float(arrays["lrs"][number]))
        if number == 0:
            for name, value in part(arrays, "grad/").items():
                close(trainer.weights[ours(name)].grad, value, 5e-4, name)
    for name, value in part(arrays, "end/").items():
        change = value - start[ours(name)]
        close(trainer.weights[ours(name)].detach() - start[ours(name)], change, 2e-3, name)
    trainer.set_model_mode("eval")
    trainer.before_test()
    close(trainer.logit_scale * trainer.classifier, arrays["head"], 1e-3)
    close(trainer.model_logits(arrays["images"][0].float()), arrays["test_logits"], 1e-3)


def leaves(arrays):
    names = "image_features", "text_features"
    return (
        *(arrays[name].clone().requires_grad_() for name in names),
        torch.tensor(float(arrays["scale"])).requires_grad_(),
    )


def test_the_loss_and_its_gradients_are_those_of_the_authors_program():
    arrays = golden("flyp")
    images, texts, scale = leaves(arrays)
    loss = contrastive_loss(images, texts, scale, arrays["labels"][0], "batch")
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=CLOSE)
    close(images.grad, arrays["grad_image_features"], 5e-4)
    close(texts.grad, arrays["grad_text_features"], 5e-4)
    close(scale.grad, arrays["grad_scale"], 5e-4)


@pytest.mark.parametrize(("name", "key"), [("batch_shared", "supervised"), ("batch_masked", "ignore")])
def test_the_variants_are_those_of_the_authors_function(name, key):
    arrays = golden("flyp")
    loss = contrastive_loss(*leaves(arrays), arrays["labels"][0], name)
    assert loss.item() == pytest.approx(float(arrays[f"variant_{key}_loss"]), rel=CLOSE)
    far(loss.detach(), arrays["loss"], 0.09)  # what images of one class are to each other cannot be overlooked


def test_the_loss_over_classes_is_cross_entropy_over_all_of_them(tmp_path):
    arrays, trainer = started(tmp_path, LOSS="classes")
    chosen = torch.arange(trainer.num_classes) % 2
    trainer.draw_templates = lambda count: chosen
    images, labels = arrays["images"][0].float(), arrays["labels"][0]
    terms, _, _ = trainer.loss_terms(images, labels)
    model = trainer.backbone  # the towers are still CLIP's own
    texts = torch.stack([model.text.encode(trainer.tokens[c, k][None])[0] for c, k in enumerate(chosen.tolist())])
    losses = []
    for feature, label in zip(model.encode_image(images), labels.tolist()):
        cosines = torch.stack([feature @ (text / text.norm()) for text in texts])
        losses.append(-(float(arrays["scale"]) * cosines).log_softmax(0)[label])
    assert terms["ce"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=CLOSE)


def test_equal_captions_are_encoded_once_with_the_gradient_of_all(tmp_path):
    _, trainer = started(tmp_path)
    trainer.draw_templates = lambda count: torch.zeros(count, dtype=torch.long)
    labels, rows = torch.tensor([1, 1, 0, 1]), []
    encode = trainer.model.encode_text
    trainer.model.encode_text = lambda ids: rows.append(len(ids)) or encode(ids)
    weights = torch.randn(4, 32)
    (trainer.captions(labels) * weights).sum().backward()
    found = trainer.model.text.text_projection.grad.clone()
    trainer.model.zero_grad()
    each = F.normalize(encode(trainer.tokens[labels, 0]), dim=-1)
    (each * weights).sum().backward()
    assert rows == [2]
    close(found, trainer.model.text.text_projection.grad, 1e-5)


@pytest.mark.parametrize("loss", ["batch", "classes"])
def test_a_run_learns_both_towers_and_its_scale(run, loss):
    pairs = ("TRAINER.FLYP.LOSS", loss, "TRAINER.FLYP.STEPS", 4, "OPTIM.NAME", "adamw", "OPTIM.LR", 1e-3)
    folder, record, output = run("FLYP", *pairs, "TRAINER.FLYP.TEMPLATES", ["a photo of a {}.", "art of a {}."])
    state = torch.load(folder / "fine_tuned" / "model-best.pth.tar", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"tower", "text", "logit_scale"}
    assert record["prompt"] == "a photo of a {}. | art of a {}."
    assert ("each other's negatives" in output.err + output.out) is (loss == "batch")
    again = run("FLYP", "TRAINER.FLYP.LOSS", loss, flags=["--eval-only", "--model-dir", folder], name="eval")[2].out
    if loss == "batch":  # the same templates in the evaluation
        again = run("FLYP", "TRAINER.FLYP.TEMPLATES", ["a photo of a {}.", "art of a {}."],
                    flags=["--eval-only", "--model-dir", folder], name="eval2")[2].out  # fmt: skip
        assert f"accuracy: {record['metrics']['test']['accuracy']:.2f}%" in again
