"""Files of weights as people have them: their configurations, layouts, wrappings and conversions.

Covers: transformers' CLIPModel with its config.json (activation, heads, norms, pixels), read by name, from a folder and
from the cache of the hub, against a forward pass written out here; open_clip's configuration beside a file; names of
repositories; prefixes, adapters, shards, endings that lie; image positions of another grid; Long-CLIP; Apple's
MobileCLIP; big_vision's numpy archive; refused pickles.
"""

import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dassl_clip.clip.backbone import load_backbone
from tests.clip.test_text_tower import TOKENIZER

TEXTS = ["a photo of a dog.", "a sketch of a cat", "wow!"]
HEADS = {"text": 2, "vision": 3}  # not width / 64, so that only a configuration tells them
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
ARCHITECTURES = {
    "small-clip": CONFIG,
    "small-clip-64": {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 64}},
    "small-clip-heads": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "heads": 4}},
    "small-clip-quick": {**CONFIG, "quick_gelu": True},
}


pytestmark = pytest.mark.usefixtures("no_network", "register_architectures")


def hf_config(activation: str = "quick_gelu", eps: float = 1e-5) -> dict:
    """A configuration as transformers writes it for the small model."""
    both = {"hidden_act": activation, "num_hidden_layers": 2, "layer_norm_eps": eps}
    text = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 49408,
            "max_position_embeddings": 77, "eos_token_id": 49407}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 24,
            "text_config": {**both, **text}, "vision_config": {**both, **vision}}  # fmt: skip


def hf_state(seed: int = 3) -> dict[str, Tensor]:
    """Random weights of the small model under transformers' names; large enough for activations to differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    state = {"logit_scale": torch.tensor(2.0), "text_projection.weight": draw(24, 32)}
    state |= {"visual_projection.weight": draw(24, 48)}
    for tower, width in (("text_model", 32), ("vision_model", 48)):
        for layer in range(2):
            block = f"{tower}.encoder.layers.{layer}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                state[f"{block}.self_attn.{part}.weight"] = draw(width, width)
                state[f"{block}.self_attn.{part}.bias"] = draw(width)
            for name, out, into in (("fc1", 4 * width, width), ("fc2", width, 4 * width)):
                state[f"{block}.mlp.{name}.weight"], state[f"{block}.mlp.{name}.bias"] = draw(out, into), draw(out)
            for name in ("layer_norm1", "layer_norm2"):
                state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"] = 1 + draw(width), draw(width)
        norms = ("final_layer_norm",) if tower == "text_model" else ("pre_layrnorm", "post_layernorm")
        for name in norms:
            state[f"{tower}.{name}.weight"], state[f"{tower}.{name}.bias"] = 1 + draw(width), draw(width)
    state["text_model.embeddings.token_embedding.weight"] = draw(49408, 32)
    state["text_model.embeddings.position_embedding.weight"] = draw(77, 32)
    state["vision_model.embeddings.class_embedding"] = draw(48)
    state["vision_model.embeddings.patch_embedding.weight"] = draw(48, 3, 8, 8)
    state["vision_model.embeddings.position_embedding.weight"] = draw(17, 48)
    return state


class Naive:
    """CLIP's forward pass, written out from transformers' names in float64: one row and one head at a time."""

    def __init__(self, state: dict[str, Tensor], activation: str, eps: float = 1e-5):
        self.state, self.eps = {name: value.double() for name, value in state.items()}, eps
        self.activation = {
            "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
            "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
            "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        }[activation]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def block(self, x: Tensor, name: str, heads: int, causal: bool) -> Tensor:
        hidden = self.norm(x, f"{name}.layer_norm1")
        q, k, v = (self.linear(hidden, f"{name}.self_attn.{part}_proj") for part in "qkv")
        width, out = x.shape[-1] // heads, torch.zeros_like(x)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            for row in range(len(x)):
                seen = slice(0, row + 1 if causal else len(x))
                weights = torch.softmax(q[row, own] @ k[seen, own].T / math.sqrt(width), dim=-1)
                out[row, own] = weights @ v[seen, own]
        x = x + self.linear(out, f"{name}.self_attn.out_proj")
        hidden = self.activation(self.linear(self.norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def text(self, ids: Tensor) -> Tensor:
        """Features `[E]` of one text."""
        s, end = self.state, int(ids.argmax())
        x = s["text_model.embeddings.token_embedding.weight"][ids[: end + 1]]
        x = x + s["text_model.embeddings.position_embedding.weight"][: end + 1]
        for layer in range(2):
            x = self.block(x, f"text_model.encoder.layers.{layer}", HEADS["text"], causal=True)
        return s["text_projection.weight"] @ self.norm(x[end], "text_model.final_layer_norm")

    def image(self, image: Tensor, positions: Tensor | None = None) -> Tensor:
        """Features `[E]` of one image `[3, H, W]`."""
        s = self.state
        kernel = s["vision_model.embeddings.patch_embedding.weight"]
        rows = [s["vision_model.embeddings.class_embedding"]]
        for i in range(0, image.shape[1], 8):
            for j in range(0, image.shape[2], 8):
                rows.append((kernel * image[None, :, i : i + 8, j : j + 8].double()).sum((1, 2, 3)))
        x = torch.stack(rows)
        x = x + (s["vision_model.embeddings.position_embedding.weight"] if positions is None else positions.double())
        x = self.norm(x, "vision_model.pre_layrnorm")
        for layer in range(2):
            x = self.block(x, f"vision_model.encoder.layers.{layer}", HEADS["vision"], causal=False)
        return s["visual_projection.weight"] @ self.norm(x[0], "vision_model.post_layernorm")

    def assert_equals(self, frozen, positions: Tensor | None = None, count: int = 2) -> None:
        """The features of a loaded backbone are these."""
        images = torch.randn(count, 3, *frozen.image_size, generator=torch.Generator().manual_seed(6))
        expected = torch.stack([self.image(image, positions) for image in images])
        found = frozen.encode_image(images, normalize=False).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        ids = TOKENIZER(context_length=77)(TEXTS)
        expected = torch.stack([self.text(row) for row in ids])
        torch.testing.assert_close(frozen.text.encode(TEXTS).double(), expected, rtol=1e-4, atol=1e-4)


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under open_clip's names, by a table of their own."""
    out = {"logit_scale": state["logit_scale"], "text_projection": state["text_projection.weight"].T.contiguous()}
    out["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    for theirs, ours in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            old, new = f"{theirs}.encoder.layers.{layer}", f"{ours}transformer.resblocks.{layer}"
            for kind in ("weight", "bias"):
                parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
                for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                    out[f"{new}.{b}.{kind}"] = state[f"{old}.{a}.{kind}"]
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
    out["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    out["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    out["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    out["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    return out


def folder_with(folder: Path, state: dict[str, Tensor], config: dict | None, name: str = "model.safetensors") -> Path:
    """A folder with a file of weights and transformers' configuration; gives the file."""
    folder.mkdir(exist_ok=True)
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / name


# --------------------------------------------------------------------------------- configurations beside the weights


@pytest.mark.parametrize("layout, file", [("transformers", "model.safetensors"), ("open_clip", "pytorch_model.bin")])
@pytest.mark.parametrize("name, activation", [("small-clip", "quick_gelu"), ("small-clip-quick", "gelu")])
def test_6_1_the_activation_is_that_of_the_configuration_beside_it(name, activation, layout, file, tmp_path, caplog):
    """Against the naive pass with either activation: the name stands for the other one, the configuration decides."""
    state = hf_state()
    stored, word = to_open_clip(state) if layout == "open_clip" else state, activation.replace("_", "")
    path = folder_with(tmp_path / "m", stored, hf_config(activation), file)
    with caplog.at_level(logging.WARNING):
        frozen = load_backbone(name, weights=str(path))
    assert frozen.describe()["activation"] == word
    assert f"{path.parent / 'config.json'} says that its weights need the activation {word}" in caplog.text
    Naive(state, activation).assert_equals(frozen)


@pytest.mark.parametrize(
    "change, activation",
    [
        ({"hidden_act": "gelu", "text_config": {}, "vision_config": {}}, "gelu"),  # at the top alone
        ({"hidden_act": "gelu", "model_type": None, "text_config": None, "vision_config": None}, "gelu"),
        ({"text_config": {"num_attention_heads": 2}, "vision_config": {"num_attention_heads": 3}}, "quick_gelu"),
        ({"text_config_dict": {"hidden_act": "gelu", "hidden_size": 32, "num_hidden_layers": 2,
                               "num_attention_heads": 2, "intermediate_size": 128},
          "vision_config_dict": {"hidden_act": "gelu", "hidden_size": 48, "num_hidden_layers": 2, "patch_size": 8,
                                 "num_attention_heads": 3, "intermediate_size": 192}}, "gelu"),
        ({"text_config_dict": None, "vision_config_dict": None}, "quick_gelu"),
    ],
)  # fmt: skip
def test_6_1_where_a_configuration_says_the_activation(change, activation, tmp_path):
    """Row 6.1: at the top, in the towers, in the older `*_config_dict`, or by transformers' default."""
    config = {key: value for key, value in (hf_config() | change).items() if value is not None or "dict" in key}
    path = folder_with(tmp_path / "m", hf_state(), config)
    frozen = load_backbone("small-clip", weights=str(path))
    assert frozen.quick_gelu == (activation == "quick_gelu")
    Naive(hf_state(), activation).assert_equals(frozen, count=1)


def test_6_1_norms_and_the_tanh_form_of_gelu_are_taken_over(tmp_path):
    """Row 6.1: what else no tensor tells."""
    path = folder_with(tmp_path / "m", hf_state(), hf_config("gelu_new", eps=0.05))
    Naive(hf_state(), "gelu_new", eps=0.05).assert_equals(load_backbone("small-clip", weights=str(path)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_config": {"num_attention_heads": 4}}, "text_config.num_attention_heads is 4 instead of 2"),
        ({"vision_config": {"hidden_size": 1024}}, "vision_config.hidden_size is 1024 instead of 48"),
        ({"projection_dim": 512}, "embedding.projection_dim is 512 instead of 24"),
        ({"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "quick_gelu"}}, "different activatio"),
        ({"text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}, "its activation is 'relu'"),
    ],
)  # fmt: skip
def test_6_1_a_configuration_of_another_architecture_is_refused(change, message, tmp_path):
    path = folder_with(tmp_path / "m", hf_state(), {**hf_config(), **change})
    with pytest.raises(ValueError, match=message):
        load_backbone("small-clip", weights=str(path))


def test_6_1_pixels_of_the_preprocessor_beside_the_file(tmp_path):
    path = folder_with(tmp_path / "m", hf_state(), hf_config())
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2, "crop_size": 32}
    (path.parent / "preprocessor_config.json").write_text(json.dumps(pixels))
    frozen = load_backbone("small-clip", weights=str(path))
    assert (frozen.pixel_mean, frozen.pixel_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert frozen.interpolation == "bilinear"


def test_6_1_open_clips_own_configuration_beside_a_file(tmp_path):
    """Row 6.1: activation and pixels of `open_clip_config.json`; that of another architecture is refused."""
    path = folder_with(tmp_path / "m", to_open_clip(hf_state()), None, "any.bin")
    content = {"model_cfg": {**CONFIG, "quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (path.parent / "open_clip_config.json").write_text(json.dumps(content))
    frozen = load_backbone("small-clip", weights=str(path))
    assert frozen.pixel_mean == (0.5, 0.5, 0.5)
    Naive(hf_state(), "quick_gelu").assert_equals(frozen)
    with pytest.raises(ValueError, match="num_attention_heads is 2 instead of 4"):
        load_backbone("small-clip-heads", weights=str(path))


def test_6_1_of_two_configurations_each_layout_has_its_own(tmp_path):
    """Row 6.1: repositories that hold a model in both forms."""
    path = folder_with(tmp_path / "m", hf_state(), hf_config("gelu"))
    other = folder_with(tmp_path / "m", to_open_clip(hf_state()), None, "open_clip_model.safetensors")
    (path.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "quick_gelu": True}}))
    assert not load_backbone("small-clip", weights=str(path)).quick_gelu
    assert load_backbone("small-clip", weights=str(other)).quick_gelu
    assert load_backbone(f"local-dir:{path.parent}").quick_gelu


def test_6_1_a_folder_or_repository_in_transformers_form_needs_no_name(tmp_path):
    """Rows 6.1 and 6.6: `local-dir:` and `hf-hub:` with a config.json alone."""
    path = folder_with(tmp_path / "m", hf_state(), hf_config("gelu"))
    Naive(hf_state(), "gelu").assert_equals(load_backbone(f"local-dir:{path.parent}"))
    base = tmp_path / "hub/models--someone--small"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text("abc")
    (base / "snapshots").mkdir()
    folder_with(base / "snapshots/abc", hf_state(), hf_config("quick_gelu"))
    Naive(hf_state(), "quick_gelu").assert_equals(load_backbone("hf-hub:someone/small"))
    (path.parent / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu"}))
    with pytest.raises(FileNotFoundError, match=r"nor the config.json of a CLIPModel"):
        load_backbone(f"local-dir:{path.parent}")


# ---------------------------------------------------------------------------------------------- other grids and lengths


def test_6_6_image_positions_of_another_grid_are_resampled_as_open_clip_does(tmp_path, caplog):
    """Row 6.6: a file of 32-pixel images under a name of 64 pixels, against open_clip's own loading."""
    path = folder_with(tmp_path / "m", to_open_clip(hf_state()), None, "w.pt")
    with caplog.at_level(logging.WARNING):
        frozen = load_backbone("small-clip-64", weights=str(path))
    assert "4 x 4 patches: its positions are resampled" in caplog.text
    config = open_clip.get_model_config("small-clip-64")
    theirs = open_clip.CLIP(**config)
    open_clip.load_checkpoint(theirs, str(path))
    positions = theirs.visual.positional_embedding.detach()
    torch.testing.assert_close(frozen.model.visual.positional_embedding.detach(), positions)
    assert frozen.image_size == (64, 64) and positions.shape == (65, 48)
    Naive(hf_state(), "gelu").assert_equals(frozen, positions, count=1)
    half = {name: value.half() for name, value in to_open_clip(hf_state()).items()}
    path = folder_with(tmp_path / "half", half, None, "w.pt")
    assert load_backbone("small-clip-64", weights=str(path)).image_size == (64, 64)


@pytest.mark.parametrize("layout", ["open_clip", "transformers", "long-clip"])
def test_6_6_texts_are_as_long_as_the_positions_of_the_file(layout, tmp_path, caplog):
    """Row 6.6: 248 positions; Long-CLIP trains those from the 21st on under a name of their own."""
    state, long = hf_state(), 0.3 * torch.randn(248, 32, generator=torch.Generator().manual_seed(9))
    state["text_model.embeddings.position_embedding.weight"] = long
    stored = state if layout == "transformers" else to_open_clip(state)
    if layout == "long-clip":
        kept = torch.arange(248)[:, None] < 20
        stored["positional_embedding"] = torch.where(kept, long, torch.full_like(long, 7))
        stored["positional_embedding_res"] = torch.where(kept, torch.full_like(long, 9), long)
    path = folder_with(tmp_path / "m", stored, None)
    with caplog.at_level(logging.WARNING):
        frozen = load_backbone("small-clip", weights=str(path))
    assert frozen.context_length == 248 and "248 text positions" in caplog.text
    naive = Naive(state, "gelu")
    naive.assert_equals(frozen, count=1)
    words = "a very long description of a dog " * 25
    ids = open_clip.SimpleTokenizer(context_length=248)([words])[0]
    assert 150 < int(ids.argmax()) < 247
    torch.testing.assert_close(frozen.text.encode([words])[0].double(), naive.text(ids), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------- wrappings, conversions


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "clip_model.", "base_model.model.", "_orig_mod.module.", "student.net.clip."]
)
def test_6_6_whatever_stands_before_all_names_is_dropped(prefix, tmp_path, caplog):
    """Row 6.6: DataParallel, Lightning (which keeps parts of its own beside the model), PEFT, compiled models."""
    state = {f"{prefix}{name}": value for name, value in hf_state().items()} | {"criterion.weight": torch.ones(2)}
    path = folder_with(tmp_path / "m", {"state_dict": state, "epoch": 3}, None, "last.ckpt")
    with caplog.at_level(logging.WARNING):
        frozen = load_backbone("small-clip", weights=str(path))
    assert f"1 entries outside '{prefix}' are left out: criterion.weight" in caplog.text
    Naive(hf_state(), "gelu").assert_equals(frozen, count=1)


def test_6_6_two_models_in_one_file_are_refused_by_their_names(tmp_path):
    state = {f"{part}.{name}": value for part in ("student", "teacher") for name, value in hf_state().items()}
    path = folder_with(tmp_path / "m", state, None)
    with pytest.raises(ValueError, match=r"holds several models, under student\., teacher\.; save the one"):
        load_backbone("small-clip", weights=str(path))


def lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with PEFT's adapters on the queries, not merged."""
    out = {}
    for name, value in state.items():
        query = name.endswith("q_proj.weight")
        out[f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.') if 'q_proj' in name else name}"] = value
        if query:
            stem = f"base_model.model.{name.removesuffix('weight')}"
            out[f"{stem}lora_A.default.weight"] = torch.zeros(4, value.shape[1])
            out[f"{stem}lora_B.default.weight"] = torch.zeros(value.shape[0], 4)
    return out


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: lora(hf_state()), "PEFT's LoRA, not merged into its model; save model.merge_and_unload"),
        (lambda: {k: v for k, v in lora(hf_state()).items() if "lora" in k}, "PEFT's LoRA, not merged"),
        (lambda: {k: v for k, v in hf_state().items() if k.startswith("text_model")}, "text tower alone of"),
        (lambda: {k: v for k, v in hf_state().items() if k.startswith("vision_model")}, "image tower alone of"),
        (lambda: {"vision_model.head.probe": torch.ones(1), **hf_state()}, "SiglipModel; .*timm/ViT-B-16-SigLIP"),
        (lambda: {"image_encoder.model.x": torch.ones(1), "logit_scale": torch.ones(1)}, "Apple's MobileCLIP; open"),
        (lambda: {"prompt_learner.ctx": torch.ones(4, 32)}, "a learned prompt, without a backbone; MODEL.INIT_WEIGHTS"),
        (lambda: {"learned.prompt_learner.ctx": torch.ones(4, 32)}, "an export of a run of this project"),
    ],
)
def test_6_6_what_is_no_clip_is_called_by_its_name(content, message, tmp_path):
    path = folder_with(tmp_path / "m", content(), None)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone("small-clip", weights=str(path))
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_6_6_shards_are_read_through_their_index(ending, tmp_path):
    """Row 6.6: the index by name and in a folder; a missing shard and a shard alone are told."""
    state, folder = hf_state(), tmp_path / "m"
    names = sorted(state)
    parts = {f"model-0000{n}-of-00003.{ending}": names[n - 1 :: 3] for n in (1, 2, 3)}
    for file, own in parts.items():
        folder_with(folder, {name: state[name] for name in own}, hf_config(), file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    path = folder / f"{stem}.index.json"
    path.write_text(json.dumps(index))
    Naive(state, "quick_gelu").assert_equals(load_backbone("small-clip", weights=str(path)), count=1)
    Naive(state, "quick_gelu").assert_equals(load_backbone(f"local-dir:{folder}"), count=1)
    with pytest.raises(ValueError, match=rf"is one of 3 parts; give {stem}.index.json"):
        load_backbone("small-clip", weights=str(folder / f"model-00002-of-00003.{ending}"))
    (folder / f"model-00002-of-00003.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 3 files of weights, of which 1 are not beside it: model-00002"):
        load_backbone("small-clip", weights=str(path))
    path.write_text('{"weight_map": {"a": "../m/other"}}')
    with pytest.raises(FileNotFoundError, match=r"1 are not beside it"):
        load_backbone("small-clip", weights=str(path))
    path.write_text('{"model": 1}')
    with pytest.raises(ValueError, match=r"no index of shards with 'weight_map'"):
        load_backbone("small-clip", weights=str(path))


@pytest.mark.parametrize("name", ["w.safetensors", "model.bin"])
def test_6_6_the_content_counts_and_not_the_ending(name, tmp_path):
    state = to_open_clip(hf_state())
    path = tmp_path / name
    (torch.save if name.endswith("safetensors") else save_file)(state, path)
    Naive(hf_state(), "gelu").assert_equals(load_backbone("small-clip", weights=str(path)), count=1)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    Naive(hf_state(), "gelu").assert_equals(load_backbone("small-clip", weights=str(path)), count=1)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("openai/clip-vit-base-patch32", r"Did you mean 'ViT-B/32' or 'hf-hub:openai/clip-vit-base-patch32'\?"),
        ("clip-vit-large-patch14-336", r"Did you mean 'ViT-L/14@336px'\?"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", r"Did you mean 'ViT-B-32:laion2b_s34b_b79k' or 'hf-hub:laion/CLIP"),
        ("google/siglip-base-patch16-224", r"Did you mean 'hf-hub:google/siglip-base-patch16-224'\?"),
        ("{folder}", r"Did you mean 'local-dir:"),
        ("{file}", r"is a file: name its architecture, and give the file with MODEL.BACKBONE.WEIGHTS"),
    ],
)
def test_6_6_names_of_repositories_and_paths(name, expected, tmp_path):
    (tmp_path / "w.pt").touch()
    with pytest.raises(ValueError, match=expected):
        load_backbone(name.format(folder=tmp_path, file=tmp_path / "w.pt"))


class Anything:
    """An object that a pickle could carry."""


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older format"])
def test_6_7_a_refused_pickle_names_its_objects(new, tmp_path):
    """Row 6.7: and says nothing of torch's advice to switch the protection off."""
    path = tmp_path / "w.pt"
    content = {"state_dict": hf_state(), "args": Anything(), "path": Path("x")}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"refused: it holds Python objects besides tensors \(.*Anything") as error:
        load_backbone("small-clip", weights=str(path))
    assert "weights_only" not in str(error.value) and "pathlib" in str(error.value)


# ------------------------------------------------------------------------------------------- conversions of open_clip's


def big_vision(model: nn.Module, layers: int) -> dict[str, np.ndarray]:
    """The arrays of big_vision's form for the weights of a SigLIP model, by a table written out here."""
    state, out = model.state_dict(), {}
    width = {"img": state["visual.trunk.norm.weight"].shape[0], "txt": state["text.ln_final.weight"].shape[0]}
    heads = {
        "img": model.visual.trunk.blocks[0].attn.num_heads,
        "txt": model.text.transformer.resblocks[0].attn.num_heads,
    }

    def attention(name: str, tower: str, qkv: tuple[Tensor, Tensor], proj: tuple[Tensor, Tensor]) -> None:
        w, h = width[tower], heads[tower]
        for part, weight, bias in zip(("query", "key", "value"), qkv[0].chunk(3), qkv[1].chunk(3)):
            out[f"{name}/{part}/kernel"] = weight.T.reshape(w, h, w // h).numpy()
            out[f"{name}/{part}/bias"] = bias.reshape(h, w // h).numpy()
        out[f"{name}/out/kernel"], out[f"{name}/out/bias"] = proj[0].T.reshape(h, w // h, w).numpy(), proj[1].numpy()

    def pair(name: str, entry: str, kernel: str = "kernel") -> None:
        weight = state[f"{entry}.weight"]
        out[f"{name}/{kernel}"] = (weight.T if kernel == "kernel" else weight).contiguous().numpy()
        out[f"{name}/bias"] = state[f"{entry}.bias"].numpy()

    trunk = "visual.trunk"
    out["img/embedding/kernel"] = state[f"{trunk}.patch_embed.proj.weight"].permute(2, 3, 1, 0).contiguous().numpy()
    out["img/embedding/bias"] = state[f"{trunk}.patch_embed.proj.bias"].numpy()
    out["img/pos_embedding"] = state[f"{trunk}.pos_embed"].numpy()
    for i in range(layers):
        for tower, block, names in (
            ("img", f"{trunk}.blocks.{i}", ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
            ("txt", f"text.transformer.resblocks.{i}", ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")),
        ):
            theirs = f"img/Transformer/encoderblock_{i}" if tower == "img" else f"txt/Encoder_0/encoderblock_{i}"
            pair(f"{theirs}/LayerNorm_0", f"{block}.{names[0]}", "scale")
            pair(f"{theirs}/LayerNorm_1", f"{block}.{names[1]}", "scale")
            pair(f"{theirs}/MlpBlock_0/Dense_0", f"{block}.{names[2]}")
            pair(f"{theirs}/MlpBlock_0/Dense_1", f"{block}.{names[3]}")
            joint = (
                ("attn.qkv.weight", "attn.qkv.bias") if tower == "img" else ("attn.in_proj_weight", "attn.in_proj_bias")
            )
            last = "attn.proj" if tower == "img" else "attn.out_proj"
            attention(
                f"{theirs}/MultiHeadDotProductAttention_0", tower, tuple(state[f"{block}.{name}"] for name in joint),
                (state[f"{block}.{last}.weight"], state[f"{block}.{last}.bias"]),
            )  # fmt: skip
    pair("img/Transformer/encoder_norm", f"{trunk}.norm", "scale")
    pool = f"{trunk}.attn_pool"
    out["img/MAPHead_0/probe"] = state[f"{pool}.latent"].numpy()
    qkv = tuple(torch.cat([state[f"{pool}.q.{kind}"], state[f"{pool}.kv.{kind}"]]) for kind in ("weight", "bias"))
    proj = (state[f"{pool}.proj.weight"], state[f"{pool}.proj.bias"])
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0", "img", qkv, proj)
    pair("img/MAPHead_0/LayerNorm_0", f"{pool}.norm", "scale")
    pair("img/MAPHead_0/MlpBlock_0/Dense_0", f"{pool}.mlp.fc1")
    pair("img/MAPHead_0/MlpBlock_0/Dense_1", f"{pool}.mlp.fc2")
    out["txt/Embed_0/embedding"] = state["text.token_embedding.weight"].numpy()
    out["txt/pos_embedding"] = state["text.positional_embedding"][None].numpy()
    pair("txt/Encoder_0/encoder_norm", "text.ln_final", "scale")
    pair("txt/head", "text.text_projection")
    out["b"], out["t"] = state["logit_bias"].reshape(1).numpy(), state["logit_scale"].reshape(1).numpy()
    return {f"params/{name}": value for name, value in out.items()}


def test_6_6_a_numpy_archive_of_big_vision(tmp_path):
    """Row 6.6: converted by open_clip's program; more blocks than the model has, and other models, are refused."""
    config = {
        "embed_dim": 32, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {"timm_model_name": "tiny_siglip_for_a_test", "image_size": 32, "timm_pool": "map",
                       "timm_proj": "none", "timm_model_pretrained": False},
        "text_cfg": {**CONFIG["text_cfg"], "context_length": 16, "proj_bias": True, "no_causal_mask": True,
                     "pool_type": "last"},
    }  # fmt: skip
    timm = pytest.importorskip("timm")

    @timm.models.register_model
    def tiny_siglip_for_a_test(pretrained=False, **kwargs):
        sizes = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "img_size": 32}
        keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool")}
        return timm.models.vision_transformer.VisionTransformer(**{**sizes, "global_pool": "map", **keep})

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/tiny-npz.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    torch.manual_seed(2)
    inner = {key: value for key, value in config.items() if key != "custom_text"}
    model = open_clip.CustomTextCLIP(**json.loads(json.dumps(inner))).eval()
    arrays = big_vision(model, 2)
    np.savez(tmp_path / "w.npz", **arrays)
    frozen = load_backbone("tiny-npz", weights=str(tmp_path / "w.npz"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(frozen.model.state_dict()[name], value, rtol=0, atol=0)
    more = {name.replace("block_1", "block_2"): value for name, value in arrays.items() if "block_1" in name}
    np.savez(tmp_path / "more.npz", **arrays, **more)
    with pytest.raises(ValueError, match=r"does not fit tiny-npz: it holds [\d,]+ numbers, and the model"):
        load_backbone("tiny-npz", weights=str(tmp_path / "more.npz"))
    with pytest.raises(ValueError, match=r"big_vision's form\) that open_clip cannot convert for small-clip"):
        load_backbone("small-clip", weights=str(tmp_path / "w.npz"))


def to_apple(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of Apple's MobileCLIP for the weights of an open_clip model with a FastViT."""
    image = [("stem.", "patch_embed."), ("conv_kxk", "rbr_conv"), ("conv_scale", "rbr_scale"), ("identity", "rbr_skip"),
             ("final_conv", "conv_exp"), ("large_conv", "lkb_origin"), ("mlp.", "convffn."), ("se.fc1", "se.reduce"),
             ("se.fc2", "se.expand"), (".gamma", "")]  # fmt: skip
    text = [("transformer.resblocks.", "transformer."), ("text_projection", "projection_layer"),
            ("token_embedding", "embedding_layer"), ("ln_final", "final_layer_norm"), ("ln_1", "pre_norm_mha.0"),
            ("attn.in_proj_", "pre_norm_mha.1.qkv_proj."), ("attn.out_proj", "pre_norm_mha.1.out_proj"),
            ("ln_2", "pre_norm_ffn.0"), ("mlp.c_fc", "pre_norm_ffn.1"), ("mlp.c_proj", "pre_norm_ffn.4")]  # fmt: skip
    trunk = {name.removeprefix("visual.trunk."): value for name, value in state.items() if "trunk" in name}
    place, number = {("blocks", 0): 0}, 0
    for stage in range(1, 4):  # their stages, downsamplings and positions lie in one row
        number += 1
        place["downsample", stage] = number
        if any(name.startswith(f"stages.{stage}.pos_emb") for name in trunk):
            number += 1
            place["pos_emb", stage] = number
        number += 1
        place["blocks", stage] = number
    out = {"logit_scale": state["logit_scale"]}
    for name, value in trunk.items():
        if found := re.match(r"stages\.(\d)\.(blocks|downsample|pos_emb)\.(pos_enc)?", name):
            head = f"network.{place[found[2], int(found[1])]}." + ("pe" if found[3] else "")
            name = head + name[found.end() :]
        for ours, theirs in image:
            name = name.replace(ours, theirs)
        if name == "head.fc.weight":
            name, value = "head.proj", value.T.contiguous()
        if name != "head.fc.bias":
            out[f"image_encoder.model.{name}"] = value
    for name, value in state.items():
        if name.startswith("text."):
            name = name.removeprefix("text.")
            if name == "positional_embedding":
                name, value = "positional_embedding.pos_embed.pos_embed", value[None, None]
            for ours, theirs in text:
                name = name.replace(ours, theirs)
            out[f"text_encoder.{name}"] = value
    return out


def test_6_6_apples_mobileclip(tmp_path):
    """Row 6.6: converted by open_clip's program; under another architecture it is named."""
    timm = pytest.importorskip("timm")

    @timm.models.register_model
    def tiny_fastvit_for_a_test(pretrained=False, **kwargs):
        sizes = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}
        return timm.models.fastvit.fastvit_mci1(**sizes, **kwargs)

    vision = {"timm_model_name": "tiny_fastvit_for_a_test", "timm_pool": "avg", "timm_proj": None, "image_size": 64,
              "timm_model_pretrained": False}  # fmt: skip
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}
    (tmp_path / "tiny-apple.json").write_text(json.dumps({**config, "custom_text": True}))
    open_clip.add_model_config(tmp_path / "tiny-apple.json")
    torch.manual_seed(8)
    model = open_clip.CustomTextCLIP(**json.loads(json.dumps(config))).eval()
    with torch.no_grad():
        model.visual.trunk.head.fc.bias.zero_()  # theirs has none
    apple = to_apple(model.state_dict())
    assert "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight" in apple
    torch.save(apple, tmp_path / "apple.pt")
    frozen = load_backbone("tiny-apple", weights=str(tmp_path / "apple.pt"))
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(frozen.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(ValueError, match=r"Apple's MobileCLIP.*MobileCLIP-S1"):
        load_backbone("small-clip", weights=str(tmp_path / "apple.pt"))
