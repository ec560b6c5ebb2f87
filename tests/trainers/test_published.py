"""Checkpoints that other programs published, and exports of this one, where learned parts are wanted.

Covers: GOPro's authors' names (learned layers, image projector, what is left out) against the same numbers in our
learner; KgCoOp's context; those of CoCoOp, MaPLe, PromptSRC and CLIP-LoRA refused by name in a short line; exports
and safetensors as `MODEL.INIT_WEIGHTS`; refused pickles.
"""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dassl_clip.clip.weights import hash_state
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine.export import Export, as_bytes
from dassl_clip.trainers import GOPro
from dassl_clip.trainers.coop import CoOp
from dassl_clip.trainers.gopro.model import (
    GOProLearner,
    PromptGenerator,
    image_statistics,
    is_published,
    published_state,
)

BLOCKS, VISION, TEXT, EMBED = 3, 8, 6, 5


def learner(views: int = 1) -> GOProLearner:
    torch.manual_seed(4)
    made = GOProLearner(PromptGenerator([VISION] * BLOCKS, torch.randn(4, TEXT), views), EMBED)
    for value in made.state_dict().values():
        value.copy_(torch.randn(value.shape)) if value.is_floating_point() and value.dim() else None
    return made


def authors_state(
    own: dict[str, Tensor], prefix: str = "", projector: tuple[str, str] = ("0", "1")
) -> dict[str, Tensor]:
    """The names of the authors' program for the numbers of our learner, with what else its files hold."""
    state = {"prompt_learner.ctx": own["generator.ctx"]}
    for part in ("style", "content"):
        for block in range(BLOCKS):
            for kind in ("weight", "bias"):
                state[f"prompt_learner.{part}.linear.{block}.{kind}"] = own[f"generator.{part}.{block}.{kind}"]
    for kind in ("weight", "bias"):
        views = [number for number in range(3) if f"generator.rho.{number}.{kind}" in own]
        names = ("rho_f", "rho_mo", "rho_Au") if len(views) > 1 else ("rho",)
        for name, number in zip(names, views):
            state[f"prompt_learner.{name}.{kind}"] = own[f"generator.rho.{number}.{kind}"]
        state[f"prompt_learner.meta_net.linear1.{kind}"] = torch.randn(2, 2)
    for name, value in own.items():
        if name.startswith("image_projector."):
            layer, kind = name.split(".")[1:]
            state[f"simproj.{projector[int(layer)]}.{kind}"] = value
    state |= {
        "prompt_learner.token_prefix": torch.randn(7, 1, TEXT),
        "prompt_learner.token_suffix": torch.randn(7, 9, TEXT),
    }
    state |= {"image_encoder.conv1.weight": torch.randn(2, 2), "text_encoder.ln.weight": torch.randn(2)}
    state["logit_scale"] = torch.tensor(4.6)
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("projector", [("0", "1"), ("linear", "bn")])
def test_6_5_a_checkpoint_of_gopros_authors_loads(prefix, projector):
    """Row 6.5: strictly, and the shifts of images are those of the same layers."""
    theirs, ours = learner(), GOProLearner(PromptGenerator([VISION] * BLOCKS, torch.zeros(4, TEXT)), EMBED)
    state = authors_state(theirs.state_dict(), prefix, projector)
    assert is_published(state) and not is_published(theirs.state_dict())
    checkpoint.load_state(ours, published_state(state), "file")
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    blocks = [torch.randn(2, 7, VISION) for _ in range(BLOCKS)]
    own = theirs.state_dict()
    for image in range(2):
        fused = []
        for number, block in enumerate(blocks):
            mu = block[image].mean(0)
            sigma = (((block[image] - mu) ** 2).sum(0) + 2.3e-8).div(7).sqrt()
            style = state[f"{prefix}prompt_learner.style.linear.{number}.weight"] @ ((mu + sigma) / 2)
            style = style + state[f"{prefix}prompt_learner.style.linear.{number}.bias"]
            content = state[f"{prefix}prompt_learner.content.linear.{number}.weight"] @ mu
            content = content + state[f"{prefix}prompt_learner.content.linear.{number}.bias"]
            fused.append((style + content) / 2)
        shift = sum(own["generator.rho.0.weight"][0, number] * fused[number] for number in range(BLOCKS))
        expected = own["generator.ctx"] + shift + own["generator.rho.0.bias"]
        torch.testing.assert_close(ours.generator(image_statistics(blocks))[image], expected, rtol=1e-5, atol=1e-5)


def test_6_5_a_shift_layer_for_each_view_keeps_its_place():
    """The paper's figure has one for each; they are told by their shape, in the order of the file."""
    theirs = learner(views=3)
    ours = GOProLearner(PromptGenerator([VISION] * BLOCKS, torch.zeros(4, TEXT), 3), EMBED)
    checkpoint.load_state(ours, published_state(authors_state(theirs.state_dict())), "file")
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_6_5_a_projector_of_another_form_stays_as_it_is_where_no_score_reads_it():
    state = authors_state(learner().state_dict())
    state = {name: value for name, value in state.items() if not name.startswith("simproj.1.")}
    trainer = SimpleNamespace(unread_parts=("image_projector.",))
    learned = GOPro.published_state(trainer, state)
    assert not any(name.startswith("image_projector") for name in learned) and "generator.ctx" in learned
    trainer.unread_parts = ()
    assert any(name.startswith("image_projector") for name in GOPro.published_state(trainer, state))


def test_6_5_kgcoops_context_is_coops():
    state = {"ctx": torch.ones(4, 3), "bias_vectors": torch.ones(1, 2), "meta_net.linear1.weight": torch.ones(2, 2)}
    assert list(CoOp.published_state(None, state)) == ["ctx"]
    assert CoOp.published_state(None, {"ctx": 1, "meta_net.linear1.weight": 2}).keys() == {
        "ctx",
        "meta_net.linear1.weight",
    }


@pytest.mark.parametrize(
    "method, names",
    [
        ("MaPLe", ["prompt_learner.ctx", *(f"prompt_learner.compound_prompts_text.{i}" for i in range(8))]),
        ("PromptSRC", ["prompt_learner.ctx", "image_encoder.VPT"]),
        ("CoCoOp", ["ctx", "meta_net.linear1.weight", "meta_net.linear1.bias"]),
        ("CLIP-LoRA", [f"layer_{i}.q_proj.w_lora_A" for i in range(24)]),
        ("a prompt learner of another program", ["prompt_learner.ctx", "prompt_learner.other"]),
    ],
)
def test_6_5_foreign_checkpoints_are_refused_in_a_short_line_by_their_names(method, names, tmp_path):
    towers = {f"image_encoder.transformer.resblocks.{i}.attn.in_proj_weight": torch.zeros(1) for i in range(300)}
    with pytest.raises(ValueError, match=rf"looks like a checkpoint of {method}: ") as error:
        checkpoint.load_state(learner(), {name: torch.zeros(1) for name in names} | towers, "file")
    text = str(error.value)
    assert len(text) < 900 and "\n" not in text and re.search(r" and \d+ more\. Is it of the same", text)


def export_of(learned: dict[str, dict[str, Tensor]]) -> Export:
    facts = {name: {"sha256": hash_state(state)} for name, state in learned.items()}
    backbone = {"name": "IconsCLIP", "weights_hash": "ab" * 32, "embed_dim": EMBED}
    record = {"method": "CoOp", "learned": facts}
    return Export(learned, ["dog", "cat"], backbone, {"MODEL": {}}, record, None, None, "none")


def test_6_7_an_export_and_safetensors_load_as_init_weights(tmp_path):
    state = {"ctx": torch.randn(4, 3)}
    path = tmp_path / "run.safetensors"
    path.write_bytes(as_bytes(export_of({"prompt_learner": state})))
    content = checkpoint.load_checkpoint(path)
    assert torch.equal(content["state_dict"]["ctx"], state["ctx"]) and content["classnames"] == ["dog", "cat"]
    assert content["backbone"]["weights_hash"] == "ab" * 32
    save_file(state, tmp_path / "plain")
    assert torch.equal(checkpoint.load_checkpoint(tmp_path / "plain")["state_dict"]["ctx"], state["ctx"])
    path.write_bytes(as_bytes(export_of({})))
    with pytest.raises(ValueError, match=r"is an export of CoOp whose learned parts are none: the run refines another"):
        checkpoint.load_checkpoint(path)
    torch.save({"state_dict": state}, path)
    assert torch.equal(checkpoint.load_checkpoint(path)["state_dict"]["ctx"], state["ctx"])


class Anything:
    """An object that a pickle could carry."""


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older format"])
def test_6_7_refused_pickles_name_their_objects(new, tmp_path):
    path = tmp_path / "model.pth.tar-5"
    torch.save({"state_dict": {"ctx": torch.ones(1)}, "args": Anything()}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"pickled objects besides tensors \(.*Anything\)") as error:
        checkpoint.load_checkpoint(path)
    assert "weights_only" not in str(error.value)
