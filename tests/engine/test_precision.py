"""Frozen towers in half precision (`PREC amp`, bfloat16 on a CPU): what is learned and the losses stay in float32.

Covers every trainer: dtypes of parameters, gradients, optimiser states, checkpoints, losses and scores; the towers do
run in bfloat16; a gradient that overflows float16 skips a step and lowers the scale, while a loss that is not finite
stops the run. `PREC tf32` is `fp32` to the last digit on a CPU, and a setting of the towers' passes alone on a GPU.
"""

import itertools

import pytest
import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl_clip import datasets, trainers
from dassl_clip.cli.train import parse
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.engine.precision import Precision
from dassl_clip.engine.step_trainer import StepTrainer
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.trainers.clap.pairs import text_pairs

assert datasets and trainers  # imported for their registrations
NAMES = [name for name in trainers.__all__ if name != "add_config"]
SHORT = {
    "CLAP": ("TRAINER.CLAP.MAX_STEPS", 20, "TRAINER.CLAP.BATCH_SIZE", 8),
    "CLIPLoRA": ("TRAINER.CLIPLORA.STEPS_PER_SHOT", 0),
    "MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2),
    "PromptSRC": ("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2),
    "ProLIP": ("TRAINER.PROLIP.STEPS", 5),
    "TipAdapterF": ("TRAINER.TIPADAPTERF.EPOCHS", 2),
}


def build(name, tiny_clip, domain_tree, folder, *pairs):
    (folder / "data.yaml").write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["--trainer", name, "--dataset-config-file", str(folder / "data.yaml"), "--root", str(domain_tree)]
    words += ["--seed", "1", "--source-domains", "art", "--target-domains", "sketch", "--output-dir", str(folder)]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False"]
    words += ["OPTIM.NAME", "sgd", "OPTIM.LR", "0.002", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "6"]
    overrides, _ = parse([*words, f"TRAINER.{name.upper()}.PREC", "amp", *map(str, pairs)])
    return build_trainer(resolve_config(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_learned_parts_and_losses_are_float32(name, tiny_clip, domain_tree, tmp_path, monkeypatch):
    assert issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")  # the towers shall run
    trainer = build(name, tiny_clip, domain_tree, tmp_path, *SHORT.get(name, ()))
    inside, seen, backward = set(), [], torch.Tensor.backward
    changed = [*getattr(getattr(trainer, "model", None), "_towers", {}).values()]  # CLIP-LoRA runs copies of the towers
    changed += [trainer.model] if isinstance(trainer, StepTrainer) else []  # a tower of its own
    for module in itertools.chain(*(tower.modules() for tower in (trainer.backbone, *changed))):
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, given, out: inside.add(out.dtype))

    def noted(loss, *given, **named):
        seen.append(loss.dtype)
        return backward(loss, *given, **named)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    trainer.train()
    assert torch.bfloat16 in inside, inside
    trains = name == "CLAP" or (trainer.trains_on_labels and name != "TipAdapter")  # whose keys are means
    assert set(seen) == ({torch.float32} if trains else set())
    for model in trainer._models.values():
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} <= {torch.float32}
    for optimizer in filter(None, trainer._optims.values()):
        states = [value for state in optimizer.state.values() for value in state.values()]
        assert {value.dtype for value in states if isinstance(value, torch.Tensor)} == {torch.float32}
    for path in tmp_path.glob("*/model.pth.tar-*"):
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}
    assert trainer.evaluation.predictions["test"]["shares"].dtype == torch.float32


def test_claps_noise_prompts_run_in_half_precision_too(tiny_clip, domain_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    (tmp_path / "texts").write_text("a drawing of a {}\n{} at night\n")
    noisy, texts = {}, ("TRAINER.CLAP.NOISE_TOKENS", 2, "TRAINER.CLAP.SOURCE", str(tmp_path / "texts"))
    for precision in ("fp32", "amp"):
        own = (*texts, "TRAINER.CLAP.MAX_STEPS", 1, "TRAINER.CLAP.PREC", precision)
        trainer = build("CLAP", tiny_clip, domain_tree, tmp_path, *own)
        noisy[precision] = text_pairs(trainer)[0].batch(0)[1]
        assert noisy[precision].dtype == torch.float32
    assert not torch.equal(noisy["amp"], noisy["fp32"])
    assert torch.nn.functional.cosine_similarity(noisy["amp"], noisy["fp32"]).min() > 0.999


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite, as a float16 gradient under a large scale is."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, float("inf"))


def test_overflow_of_scaled_gradients_skips_the_step(tiny_clip, domain_tree, tmp_path):
    trainer = build("CoOp", tiny_clip, domain_tree, tmp_path)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True)  # as on a GPU with float16
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 9
    trainer.batch_paths, before = ["a.png"], trainer.model.ctx.detach().clone()

    def step(factor):
        loss = trainer.model.ctx.square().mean()
        return trainer.optimise({"ce": factor(loss)}, {"ce": 1.0}, {"context": trainer.model.ctx})

    summary = step(Overflowing.apply)
    assert torch.equal(trainer.model.ctx, before) and trainer.precision.scaler.get_scale() == 512.0
    assert summary["loss"] == pytest.approx(float(before.square().mean()))
    step(lambda loss: loss)
    assert not torch.equal(trainer.model.ctx, before) and trainer.precision.scaler.get_scale() == 512.0
    with pytest.raises(FloatingPointError, match="the loss is not finite at epoch 1, step 1 of 9"):
        step(lambda loss: loss * float("nan"))


@pytest.mark.parametrize("capability, half", [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_gpus_that_only_emulate_bf16_take_fp16(capability, half, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    assert Precision("amp", torch.device("cuda")).dtype == half
    assert Precision("amp", torch.device("cpu")).dtype == torch.bfloat16


def test_tf32_on_a_cpu_is_fp32(tiny_clip, domain_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    found = {}
    for name in ("fp32", "tf32", "amp"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        trainer = build("CoOp", tiny_clip, domain_tree, tmp_path / name, "TRAINER.COOP.PREC", name)
        trainer.train()
        found[name] = trainer.evaluation.predictions["test"]["shares"]
    assert torch.equal(found["tf32"], found["fp32"]) and not torch.equal(found["amp"], found["fp32"])


def test_tf32_holds_within_the_towers_passes_alone():
    precision = Precision("tf32", torch.device("cuda"))  # nothing is computed: the setting is the host's
    assert torch.get_float32_matmul_precision() == "highest"
    with precision.autocast():
        assert torch.get_float32_matmul_precision() == "high" and not torch.is_autocast_enabled("cuda")
    with pytest.raises(KeyError), precision.autocast():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest" and precision.dtype == torch.float32


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU with TF32"
)
def test_tf32_rounds_products_on_a_gpu():
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0)).cuda()
    with Precision("tf32", a.device).autocast():
        rounded = a @ b
    exact = a.double() @ b.double()
    assert (a @ b - exact).abs().max() < 1e-3 < 8 * (rounded - exact).abs().max() < 1
