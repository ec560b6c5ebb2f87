"""MIRO's regulariser against the authors' program (fixtures/goldens/miro_vl2v.npz), and in real runs.

Covers: value and gradients of the loss, the first variances; a sum in place of a mean is seen; the layers of a ViT and
of a ResNet; the variances' rate; what a run learns, saves and exports.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.clip.backbone import load_backbone
from dassl_clip.results.errors import UserError
from dassl_clip.trainers.miro import Guidance, guided_layers, listening
from tests.trainers.golden_runs import CLOSE, close, golden


def guided():
    """The golden file, its features as leaves, and the variances at its own."""
    arrays = golden("miro_vl2v")
    layers = sum(name.startswith("feat") for name in arrays)
    features = [arrays[f"feat{number}"].clone().requires_grad_() for number in range(layers)]
    guidance = Guidance([feature.shape for feature in features])
    with torch.no_grad():
        for number, b in enumerate(guidance.b):
            b.copy_(arrays[f"b{number}"])
    return arrays, features, [arrays[f"pre{number}"] for number in range(layers)], guidance


def test_the_loss_and_its_gradients_are_those_of_the_authors_program():
    arrays, features, frozen, guidance = guided()
    logits = arrays["logits"].clone().requires_grad_()
    ce, reg = F.cross_entropy(logits, arrays["labels"]), guidance(features, frozen)
    loss = ce + float(arrays["ld"]) * reg
    loss.backward()
    for found, name in ((ce, "ce"), (reg, "reg"), (loss, "loss")):
        assert found.item() == pytest.approx(float(arrays[name]), rel=CLOSE)
    close(logits.grad, arrays["grad_logits"], 5e-4)
    for number, feature in enumerate(features):
        close(feature.grad, arrays[f"grad_feat{number}"], 5e-4, f"features {number}")
        close(guidance.b[number].grad, arrays[f"grad_b{number}"], 5e-4, f"variance {number}")


def test_the_first_variances_are_those_of_the_authors_program():
    arrays, features, _, _ = guided()
    fresh = Guidance([feature.shape for feature in features])
    for b, v in zip(fresh.b, fresh.variances()):
        close(b.detach(), torch.full_like(b, float(arrays["b_start"])), 1e-5)
        close(v.detach(), torch.full_like(v, float(arrays["var_start"])), 1e-6)


def test_a_variance_for_each_position_in_place_of_each_channel_is_seen():
    _, features, frozen, guidance = guided()
    swapped = [feature.transpose(0, -1) if feature.dim() == 3 else feature for feature in features]
    with pytest.raises(RuntimeError):
        guidance(swapped, [f.transpose(0, -1) if f.dim() == 3 else f for f in frozen])


def test_the_layers_of_a_vit_end_the_quarters_of_its_depth():
    class Tower(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.conv1 = nn.Identity()
            self.transformer = nn.Module()
            self.transformer.resblocks = nn.ModuleList(nn.Identity() for _ in range(depth))

    tower = Tower(12)
    blocks = list(tower.transformer.resblocks)
    assert guided_layers(tower) == [tower.conv1, *(blocks[number] for number in (2, 5, 8, 11))]
    assert len(guided_layers(Tower(2))) == 3
    with pytest.raises(UserError, match="open_clip's ViT or ResNet"):
        guided_layers(nn.Linear(2, 2))


def test_a_resnet_is_guided_at_its_stem_and_stages():
    visual = load_backbone("IconsCLIP").model.visual
    with torch.no_grad(), listening(guided_layers(visual)) as outputs:
        visual(torch.zeros(2, 3, 64, 64))
    assert [output.shape[1] for output in outputs] == [32, 128, 256, 512, 1024]


def test_a_run_learns_variances_at_their_own_rate_and_scores_without_them(run):
    pairs = ("TRAINER.MIRO.STEPS", 4, "TRAINER.MIRO.PER_DOMAIN", 2, "OPTIM.NAME", "adam", "OPTIM.LR", 1e-4)
    folder, record, _ = run("MIRO", *pairs)
    state = torch.load(folder / "fine_tuned" / "model.pth.tar-2", weights_only=True)
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([1e-4, 1e-3])
    assert set(record["losses"]) == {"loss", "ce", "guidance"}
    assert any(name.startswith("guidance.b.") for name in state["state_dict"])
    first = -2.2522735  # where b starts
    assert (state["state_dict"]["guidance.b.0"] - first).abs().max() > 1e-3
