"""CLIP-LoRA against the authors' program: low-rank changes of the attention of both towers.

Covers: scores of the frozen towers, then with given dropout masks the scores, losses, gradients, rates and changes of
every step, and the merged test, on the small CLIP, by the module and by the trainer's own steps; published checkpoints;
another factor on the changes, a mistake, is seen; the frozen towers stay as they are.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.clip.lora import AdaptedCLIP
from dassl_clip.results.errors import UserError
from dassl_clip.trainers.clip_lora import cosine_rate
from tests.trainers.golden_runs import (
    CLOSE,
    batch_of,
    close,
    far,
    golden,
    golden_trainer,
    part,
    same_change,
    small_clip,
)


class FixedMask(nn.Module):
    """A dropout whose kept entries are given, `[T, B, W]`."""

    def __init__(self, mask, p):
        super().__init__()
        self.mask, self.p = mask.transpose(0, 1).float(), p

    def forward(self, x):
        return x * self.mask[:, : x.shape[1]] / (1 - self.p)


def ours(name):
    """Our name of a change that the program calls `visual.transformer.resblocks.0.attn.q_proj.w_lora_A`."""
    tower = "visual" if name.startswith("visual.") else "text"
    block, _, rest = name.split("resblocks.")[1].partition(".attn.")
    return f"{tower}.{block}.{rest}"


@pytest.fixture
def lora():
    """The golden file, the frozen CLIP, and the adapted one at the golden's start, with its dropout masks."""
    arrays = golden("clip_lora")
    clip = small_clip(arrays)
    settings = int(arrays["r"]), float(arrays["alpha"]), float(arrays["p"])
    adapted = AdaptedCLIP(clip, *settings)
    adapted.load_state_dict({ours(name): value for name, value in part(arrays, "start/").items()})
    for name, mask in part(arrays, "mask/").items():
        adapted.get_submodule(ours(f"{name}.x").removesuffix(".x")).dropout = FixedMask(mask, float(arrays["p"]))
    return arrays, clip, adapted


def scores(adapted, images, tokens):
    image, text = adapted.encode_image(images), adapted.encode_text(tokens)
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def test_every_step_and_the_merged_test_are_those_of_the_authors_program(lora):
    arrays, clip, adapted = lora
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    optim = torch.optim.AdamW(adapted.parameters(), lr=float(arrays["lr"]), weight_decay=float(arrays["weight_decay"]))
    adapted.train()
    steps = int(arrays["total_iters"])
    for step in range(steps):
        rate = cosine_rate(step, steps, float(arrays["lr"]), float(arrays["eta_min"]))
        assert rate == pytest.approx(float(arrays["lrs"][step]))
        for group in optim.param_groups:
            group["lr"] = rate
        logits = 100 * scores(adapted, arrays["images"][step % 2], arrays["tokens"])
        close(logits, arrays["train_logits"][step], CLOSE)
        loss = F.cross_entropy(logits, arrays["labels"][step % 2])
        assert loss.item() == pytest.approx(float(arrays["train_losses"][step]), rel=CLOSE)
        optim.zero_grad()
        loss.backward()
        if step == 0:
            for name, value in part(arrays, "grad/").items():
                close(adapted.get_parameter(ours(name)).grad, value, 5e-4, name)
        optim.step()
    for name, value in part(arrays, "start/").items():
        same_change(adapted.get_parameter(ours(name)), value, arrays[f"end/{name}"], name)
    adapted.eval()
    close(scores(adapted, arrays["test_images"], arrays["tokens"]), arrays["test_cosines"], CLOSE)
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_changes_the_towers_are_the_frozen_ones(lora):
    arrays, clip, _ = lora
    adapted = AdaptedCLIP(clip).eval()
    close(adapted.encode_text(arrays["tokens"]), clip.text.encode(arrays["tokens"]), 1e-5)
    close(adapted.encode_image(arrays["test_images"]), clip.encode_image(arrays["test_images"], normalize=False), 1e-5)


def test_another_factor_on_the_changes_is_seen(lora):
    arrays, clip, adapted = lora
    wrong = AdaptedCLIP(clip, 2, 1 / math.sqrt(2), 0.25)  # alpha / r
    wrong.load_state_dict(adapted.state_dict())
    right, other = (scores(each.eval(), arrays["test_images"], arrays["tokens"]) for each in (adapted, wrong))
    far(other, right, 1e-3)


def published(arrays, folder, prefix="end", **metadata):
    """A checkpoint as the authors' program writes it; layers are numbered texts first."""
    weights = {}
    for name, value in part(arrays, f"{prefix}/").items():
        tower, block, projection, kind = ours(name).split(".")
        layer = f"layer_{int(block) + (4 if tower == 'visual' else 0)}"
        weights.setdefault(layer, {}).setdefault(projection, {})[kind] = value
    facts = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"} | metadata
    torch.save({"weights": weights, "metadata": facts}, folder / "published.pth")


def test_the_trainer_scores_a_published_checkpoint_as_its_program_does(tmp_path):
    arrays = golden("clip_lora")
    published(arrays, tmp_path)
    settings = {"TEMPLATES": "a photo of a {}.", "STEPS_PER_SHOT": 0}
    trainer = golden_trainer("CLIPLoRA", arrays, tmp_path, settings, {"NAME": "adamw", "LR": 2e-3})
    trainer.set_model_mode("eval")
    trainer.before_test()
    logits = trainer.feature_logits(trainer.encoding.encode(arrays["test_images"]))
    close(logits / trainer.logit_scale, arrays["test_cosines"], CLOSE)
    published(arrays, tmp_path, r=4)
    with pytest.raises(UserError, match=r"rank 4 and alpha 1, TRAINER\.CLIPLORA has RANK 2"):
        golden_trainer("CLIPLoRA", arrays, tmp_path, settings, {"NAME": "adamw"})


def test_a_step_of_the_trainer_is_the_programs_at_the_rate_of_its_number(tmp_path):
    """With the golden's masks; logits carry the model's own scale, which the golden's 100 stands for."""
    arrays = golden("clip_lora")
    published(arrays, tmp_path, "start")
    settings = {"TEMPLATES": "a photo of a {}.", "STEPS_PER_SHOT": 0, "LAST_LR": float(arrays["eta_min"])}
    optim = {"NAME": "adamw", "LR": float(arrays["lr"]), "WEIGHT_DECAY": float(arrays["weight_decay"])}
    trainer = golden_trainer("CLIPLoRA", arrays, tmp_path, settings, optim, epochs=2)
    trainer.logit_scale = torch.tensor(100.0)
    for name, mask in part(arrays, "mask/").items():
        place = ours(f"{name}.x").removesuffix(".x")
        trainer.model.get_submodule(place).dropout = FixedMask(mask, float(arrays["p"]))
    trainer.num_batches = 2
    for step in range(4):
        trainer.epoch, trainer.batch_idx = divmod(step, 2)
        batch = {"images": arrays["images"][step % 2], "labels": arrays["labels"][step % 2]}
        trainer.set_model_mode("train")
        assert trainer.forward_backward(batch_of(batch))["loss"] == pytest.approx(
            float(arrays["train_losses"][step]), rel=CLOSE
        )
    for name, value in part(arrays, "start/").items():
        same_change(trainer.model.get_parameter(ours(name)), value, arrays[f"end/{name}"], name)
