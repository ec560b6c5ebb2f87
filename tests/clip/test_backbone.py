"""The frozen CLIP: names, files of weights, preprocessing, block outputs, and what a user can get wrong.

Covers: features after loading from safetensors, state dicts (plain, wrapped, the custom-text layout; others in
`test_weight_files.py`) and OpenAI's JIT archive (small, and with RN50's layers), from folders, the Hugging Face
cache and OpenAI's cache, all without network; quickgelu for OpenAI's names and archives; sizes read from the model; the
preprocessing bit for bit against open_clip's own; block outputs against a pass block by block; hash, random state,
precision; refusals.
"""

import gzip
import hashlib
import importlib.util
import json
import logging
import struct
import time
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dassl_clip.clip import sources, weight_files
from dassl_clip.clip.backbone import FrozenCLIP, load_backbone
from dassl_clip.clip.names import embedded_folder
from tests.clip.test_text_tower import TOKENIZER

TEXTS = ["a photo of a dog.", "a sketch of a cat", "wow!"]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
RESNET = {"layers": [1, 2, 1, 1], "width": 16, "patch_size": None, "image_size": 64}
ARCHITECTURES = {
    "tiny-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-resnet": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
    "tiny-custom": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "tiny-coca": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "tiny-wide": {"embed_dim": 24, "vision_cfg": {**VIT, "width": 64}, "text_cfg": TEXT},
}
FORMS = ("safetensors", "state dict", "wrapped", "custom text", "archive")


pytestmark = pytest.mark.usefixtures("no_network", "register_architectures")


def build(name: str, quick_gelu: bool = False) -> nn.Module:
    """open_clip's own model with weights that matter everywhere."""
    config = deepcopy(ARCHITECTURES[name]) if name in ARCHITECTURES else open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**{**config, "quick_gelu": quick_gelu}).eval()
    generator = torch.Generator().manual_seed(5)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.abs_().add_(0.1)
    return model


def images_for(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def assert_same_model(frozen: FrozenCLIP, model: nn.Module, **tolerance: float) -> None:
    """Image and text features are those of open_clip's model."""
    images = images_for(frozen.image_size[0])
    expected = F.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(frozen.encode_image(images), expected, **tolerance)
    ids = TOKENIZER(context_length=frozen.context_length)(TEXTS)
    torch.testing.assert_close(frozen.text.encode(TEXTS), model.encode_text(ids), rtol=1e-4, atol=1e-5)


class Holder(nn.Module):
    """Tensors under the names of a state dict; a module that TorchScript can save."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        for head in sorted({name.partition(".")[0] for name in state}):
            inner = {name[len(head) + 1 :]: value for name, value in state.items() if name.startswith(head + ".")}
            if inner:
                self.add_module(head, Holder(inner))
            elif state[head].dim() or not state[head].is_floating_point():
                self.register_buffer(head, state[head])
            else:
                self.register_parameter(head, nn.Parameter(state[head]))

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(model: nn.Module, path: Path, size: int) -> None:
    """OpenAI's layout: a TorchScript archive with weights in half precision and three buffers of sizes."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    buffers = {"input_resolution": size, "context_length": 77, "vocab_size": 49408}
    half.update({name: torch.tensor(value) for name, value in buffers.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Holder(half)).save(str(path))


def save(model: nn.Module, form: str, folder: Path, size: int = 32) -> Path:
    """A file of weights in one of the forms that users have, under a name that tells nothing."""
    state, path = model.state_dict(), folder / "weights.any"
    if form == "safetensors":
        save_file(state, path)
    elif form == "state dict":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}, path)
    elif form == "custom text":
        text = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
        torch.save({(f"text.{k}" if k.startswith(text) else k): v for k, v in state.items()}, path)
    else:
        save_archive(model, path, size)
    return path


# ------------------------------------------------------------------------------------------- files of weights


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_same_features(form, tmp_path):
    model = build("tiny-vit", quick_gelu=form == "archive")
    frozen = load_backbone("tiny-vit", weights=str(save(model, form, tmp_path)))
    if form == "archive":
        model = model.half().float()
    assert_same_model(frozen, model, rtol=1e-4, atol=1e-6)
    assert frozen.quick_gelu == (form == "archive")


@pytest.mark.parametrize("form", ["safetensors", "archive"])
def test_a_resnet_file(form, tmp_path):
    model = build("tiny-resnet", quick_gelu=True)
    frozen = load_backbone("tiny-resnet", weights=str(save(model, form, tmp_path, 64)))
    if form == "archive":
        assert_same_model(frozen, model.half().float(), rtol=1e-4, atol=1e-6)
    else:
        assert not frozen.quick_gelu


def test_a_plain_file_loads_into_a_custom_text_model(tmp_path):
    model = build("tiny-vit")
    frozen = load_backbone("tiny-custom", weights=str(save(model, "state dict", tmp_path)))
    assert isinstance(frozen.model, open_clip.CustomTextCLIP)
    assert_same_model(frozen, model, rtol=1e-4, atol=1e-6)


def test_openai_archive_under_openai_name(tmp_path, monkeypatch):
    """RN50 as OpenAI ships it, but narrower, found in OpenAI's own cache folder."""
    config = open_clip.get_model_config("RN50")
    config["embed_dim"] //= 8
    config["vision_cfg"]["width"] //= 4
    config["text_cfg"] |= {"width": 64, "heads": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "RN50", config)
    model = build("RN50", quick_gelu=True).half().float()
    cache = tmp_path / "home/.cache/clip"
    cache.mkdir(parents=True)
    save_archive(model, cache / "RN50.pt", 224)
    frozen = load_backbone("RN50")
    assert_same_model(frozen, model, rtol=1e-3, atol=1e-5)
    activations = [module for name, module in frozen.model.named_modules() if name.endswith("mlp.gelu")]
    assert len(activations) == 12 and all(isinstance(a, open_clip.transformer.QuickGELU) for a in activations)
    assert (frozen.embed_dim, frozen.text_width, frozen.context_length) == (128, 64, 77)
    assert (frozen.vision_widths, frozen.image_size) == ((64, 128, 256, 512), (224, 224))


def test_a_file_of_an_architecture_of_open_clip_is_called_by_its_names(tmp_path):
    with torch.device("meta"):
        sizes = open_clip.CLIP(**open_clip.get_model_config("RN50")).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in sizes.items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"does not fit tiny-vit: .*The file looks like RN50 or RN50-quickgelu"):
        load_backbone("tiny-vit", weights=str(tmp_path / "w.pt"))


def test_a_file_of_another_size_is_refused_with_what_it_looks_like(tmp_path):
    path = save(build("tiny-wide"), "safetensors", tmp_path)
    told = r"entries of another shape.*looks like tiny-wide: ViT of width 64, layers 3, patch 8, 32 pixels"
    with pytest.raises(ValueError, match=told):
        load_backbone("tiny-vit", weights=str(path))


def test_missing_and_unknown_entries_are_named(tmp_path):
    state = build("tiny-vit").state_dict()
    state["visual.extra"] = state.pop("visual.ln_post.bias")
    save_file(state, tmp_path / "w")
    told = r"missing entries \(1\): visual.ln_post.bias; unknown entries \(1\): visual.ex"
    with pytest.raises(ValueError, match=told):
        load_backbone("tiny-vit", weights=str(tmp_path / "w"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x00" * 40, "neither safetensors nor a file saved by torch"),
        (struct.pack("<Q", 10**6) + b'{"a":', "cut short"),
        ({"epoch": 3, "lr": 0.1}, "holds no state dict"),
        ([1, 2], "holds no state dict: found a list"),
        ({"fc.weight": torch.zeros(2, 2)}, r"no CLIP known here \(first entries: fc.weight\)"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_backbone("tiny-vit", weights=str(path))


def test_missing_files_and_folders_are_told(tmp_path):
    (tmp_path / "other.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"the folder holds other.pt"):
        load_backbone("ViT-B/16", weights=str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(FileNotFoundError, match=r"give the name local-dir:"):
        load_backbone("ViT-B/16", weights=str(tmp_path))


# ----------------------------------------------------------------------------------------------- names, caches


def write_folder(folder: Path, config: dict, state: dict[str, Tensor], preprocess: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def test_a_local_folder(tmp_path):
    model = build("tiny-vit", quick_gelu=True)
    folder = write_folder(tmp_path / "m", {**ARCHITECTURES["tiny-vit"], "quick_gelu": True}, model.state_dict())
    frozen = load_backbone(f"local-dir:{folder}")
    assert frozen.quick_gelu
    assert_same_model(frozen, model, rtol=1e-4, atol=1e-6)


def test_a_folder_with_its_own_merges(tmp_path):
    """A smaller vocabulary; end-of-text stays the largest id."""
    merges = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")[:1001]
    config = deepcopy(ARCHITECTURES["tiny-vit"])
    config["text_cfg"].update(vocab_size=512 + 1000 + 2, context_length=24)
    kind = deepcopy(config)
    model = open_clip.CLIP(**kind).eval()
    folder = write_folder(tmp_path / "m", config, model.state_dict())
    (folder / "bpe_merges.txt.gz").write_bytes(gzip.compress("\n".join(merges).encode()))
    frozen = load_backbone(f"local-dir:{folder}")
    tokenizer = open_clip.SimpleTokenizer(str(folder / "bpe_merges.txt.gz"), context_length=24)
    ids = tokenizer(TEXTS)
    assert torch.equal(frozen.text.tokenize(TEXTS), ids)
    assert int(ids.max()) == 1513 == frozen.text.vocab_size - 1
    with torch.no_grad():
        torch.testing.assert_close(frozen.text.encode(TEXTS), model.encode_text(ids), rtol=1e-4, atol=1e-5)
        prompts = frozen.text.encode_prompts(
            frozen.text.embed(ids[:1, 1:3])[0], frozen.text.class_tokens(["great_white shark"], n_ctx=2)
        )
        words = tokenizer.decode(ids[0, 1:3].tolist())
        sentence = model.encode_text(tokenizer([words + "great white shark."]))
    torch.testing.assert_close(prompts, sentence, rtol=1e-4, atol=1e-5)


def test_a_repository_in_the_hugging_face_cache_needs_no_network(tmp_path):
    model = build("tiny-vit")
    base = tmp_path / "hub/models--someone--tiny"
    write_folder(base / "snapshots/abc", ARCHITECTURES["tiny-vit"], model.state_dict())
    (base / "refs").mkdir()
    (base / "refs/main").write_text("abc")
    assert_same_model(load_backbone("hf-hub:someone/tiny"), model, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, tag", [("ViT-B/16", "openai"), ("ViT-B-16:laion2b_s34b_b88k", "laion2b_s34b_b88k")])
def test_without_weights_and_network_the_ways_out_are_told_at_once(name, tag, tmp_path):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        load_backbone(name)
    assert time.monotonic() - start < 3 * weight_files.PATIENCE
    text = str(error.value)
    assert f"tag '{tag}'" in text and str(tmp_path / "hub") in text
    assert all(way in text for way in ("MODEL.BACKBONE.WEIGHTS FILE", "HF_HOME", "local-dir:FOLDER"))
    assert name != "ViT-B/16" or str(tmp_path / "home/.cache/clip/ViT-B-16.pt") in text


@pytest.mark.parametrize("name", sources.OPENAI_NAMES)
def test_openai_names(name):
    source = sources.resolve(name)
    assert source.tag == "openai" and source.quick_gelu
    file = open_clip.get_pretrained_cfg(source.architecture, "openai")["url"].rpartition("/")[2]
    assert file.startswith(name.replace("/", "-").replace("@", "-"))
    assert sources.resolve(f"{source.architecture}:openai").quick_gelu
    assert not sources.resolve(f"{source.architecture}:random").quick_gelu or name.startswith("RN")


def test_tags_decide_the_activation_and_the_pixels():
    assert not sources.resolve("ViT-B-16:laion400m_e32").quick_gelu
    assert sources.resolve("ViT-B-16:metaclip_400m").quick_gelu
    assert sources.resolve("ViT-B-16-quickgelu:dfn2b").quick_gelu
    siglip = sources.resolve("ViT-B-16-SigLIP:webli").preprocess
    assert siglip["resize_mode"] == "squash" and siglip["mean"] == (0.5, 0.5, 0.5)
    assert sources.resolve("ViT-L-14-CLIPA:datacomp1b").preprocess["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    "name, message",
    [
        ("ViT-B/61", "Did you mean .*ViT-B/16"),
        ("rn50", "Did you mean .*RN50"),
        ("iconsclip", "Did you mean .IconsCLIP"),
        ("ViT-B-16", "does not say which weights to take; choose ViT-B-16:openai, "),
        ("ViT-B-16:laion2b", "Did you mean .*laion2b_s34b_b88k"),
        ("ViT-B-16-SigLIP:openai", "Known tags: webli"),
        ("tiny-vit", "a file of weights, since open_clip has no tag for it"),
        ("hf-hub:tiny", "ORGANISATION/NAME"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(name)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_a_tokenizer_from_a_missing_package_is_told():
    with pytest.raises(ValueError, match=r"tokenizer of ViT-B-16-SigLIP:random needs the package 'transformers'"):
        load_backbone("ViT-B-16-SigLIP:random")


def test_a_coca_model():
    """Tokens beside the features, a text tower of the plain path."""
    frozen = load_backbone("tiny-coca:random")
    images = images_for(32)
    with torch.no_grad():
        expected = frozen.model.encode_image(images, normalize=True)
        text = frozen.model.encode_text(frozen.text.tokenize(TEXTS), normalize=False)
    features, blocks = frozen.encode_image_with_blocks(images)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(frozen.text.encode(TEXTS), text)
    assert not frozen.text.causal and len(blocks) == 3 == len(frozen.vision_widths)


def test_folders_without_what_they_need(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_backbone(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config.json"):
        load_backbone(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no open_clip configuration"):
        load_backbone(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURES["tiny-vit"]}))
    with pytest.raises(FileNotFoundError, match="one file of weights"):
        load_backbone(f"local-dir:{tmp_path}")


def test_6_1_a_name_with_a_file_that_says_nothing_tells_what_it_assumes(tmp_path, caplog):
    """Neither an archive of OpenAI's nor a configuration beside it: the activation is a guess, and said to be one."""
    with torch.device("meta"):
        sizes = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in sizes.items()}, tmp_path / "w.pt")
    for name, activation, other in (("ViT-B/32", "quickgelu", "ViT-B-32"), ("ViT-B-32", "gelu", "ViT-B-32:openai")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            frozen = load_backbone(name, weights=str(tmp_path / "w.pt"))
        assert frozen.describe()["activation"] == activation
        wanted = nn.GELU if activation == "gelu" else open_clip.transformer.QuickGELU
        for tower in (frozen.model.visual.transformer, frozen.model.transformer):
            assert all(type(block.mlp.gelu) is wanted for block in tower.resblocks)
        assert f"read with the activation {activation}" in caplog.text
        assert caplog.text.strip().endswith(f"name it {other}")


@pytest.mark.skipif(
    not (embedded_folder() / "open_clip_model.safetensors").is_file(), reason="the embedded model is not built"
)
def test_the_embedded_model():
    frozen = load_backbone("IconsCLIP")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{embedded_folder()}")
    images = images_for(frozen.image_size[0])
    with torch.no_grad():
        expected = F.normalize(model.float().eval().encode_image(images), dim=-1)
    torch.testing.assert_close(frozen.encode_image(images), expected, rtol=1e-4, atol=1e-5)
    ids = frozen.text.tokenize(["a photo of a dog."])
    assert int(ids.max()) == frozen.text.vocab_size - 1
    assert frozen.text.causal


# ------------------------------------------------------------------------------------------------- preprocessing

PREPROCESSING = [
    (32, {}),
    (224, {"mean": [0.48, 0.45, 0.40], "std": [0.26, 0.26, 0.27]}),
    (336, {"interpolation": "bicubic", "resize_mode": "shortest"}),
    (256, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}),
    (224, {"mean": [0.485, 0.456, 0.406], "interpolation": "bilinear", "resize_mode": "squash"}),
    (64, {"resize_mode": "longest", "fill_color": 7}),
    ([64, 32], {"interpolation": "bilinear"}),
]


@pytest.mark.parametrize("key", ["mean", "std"])
def test_3_1_pixels_of_another_range_are_refused(key, tmp_path):
    """The numbers of programs whose pixels go from 0 to 255 would make every image black, or white."""
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3} | {key: [123.675, 116.28, 103.53]}
    config = ARCHITECTURES["tiny-vit"]
    folder = write_folder(tmp_path / "m", config, open_clip.CLIP(**deepcopy(config)).state_dict(), settings)
    with pytest.raises(
        ValueError, match=rf"{key} is \[123.675, 116.28, 103.53\], of pixels from 0 to 255; give it for"
    ):
        load_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize("size, settings", PREPROCESSING)
def test_preprocessing_is_open_clips_bit_for_bit(size, settings, tmp_path):
    config = {**ARCHITECTURES["tiny-vit"], "vision_cfg": {**VIT, "image_size": size, "patch_size": 16}}
    folder = write_folder(tmp_path / "m", config, open_clip.CLIP(**deepcopy(config)).state_dict(), settings)
    frozen = load_backbone(f"local-dir:{folder}")
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    ours, draw = frozen.preprocess(), np.random.default_rng(0)
    for width, height, mode in ((331, 97, "RGB"), (75, 203, "RGB"), (31, 33, "L"), (64, 64, "RGBA"), (500, 375, "P")):
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        assert torch.equal(ours(image), theirs(image))
    expected = (size, size) if isinstance(size, int) else tuple(size)
    assert frozen.image_size == expected == tuple(ours(image).shape[1:])
    assert frozen.interpolation == settings.get("interpolation", "bicubic")
    pixels = torch.rand(3, 4, 4)
    mean, std = torch.tensor(frozen.pixel_mean)[:, None, None], torch.tensor(frozen.pixel_std)[:, None, None]
    torch.testing.assert_close(frozen.normalize()(pixels), (pixels - mean) / std)
    assert list(frozen.pixel_mean) == pytest.approx(settings.get("mean", open_clip.OPENAI_DATASET_MEAN))


# ------------------------------------------------------------------------------------------------ the model itself


def test_vit_blocks_are_the_residual_stream():
    frozen = load_backbone("tiny-vit:random")
    images, visual = images_for(32), frozen.model.visual
    features, blocks = frozen.encode_image_with_blocks(images)
    assert frozen.vision_widths == (48, 48, 48)
    with torch.no_grad():
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block, module in zip(blocks, visual.transformer.resblocks, strict=True):
            x = module(x)
            torch.testing.assert_close(block, x, rtol=1e-5, atol=1e-5)
        expected = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features, frozen.encode_image(images))
    assert not any(t.requires_grad for t in (features, *blocks))


def test_resnet_blocks_are_the_stages_positions():
    frozen = load_backbone("tiny-resnet:random")
    images, visual = images_for(64), frozen.model.visual
    features, blocks = frozen.encode_image_with_blocks(images)
    assert frozen.vision_widths == (64, 128, 256, 512)
    with torch.no_grad():
        x = visual.stem(images)
        for block, stage in zip(blocks, (visual.layer1, visual.layer2, visual.layer3, visual.layer4), strict=True):
            x = stage(x)
            b, channels, height, width = x.shape
            expected = torch.stack([x[:, :, i, j] for i in range(height) for j in range(width)], dim=1)
            assert block.shape == (b, height * width, channels)
            torch.testing.assert_close(block, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features, F.normalize(visual.attnpool(x), dim=-1), rtol=1e-4, atol=1e-5)


def timm_clip(trunk: str, folder: Path) -> tuple[nn.Module, FrozenCLIP]:
    """A model with an image tower of timm's, and the same loaded from a folder."""
    vision = {"timm_model_name": trunk, "image_size": 160, "timm_pool": "avg", "timm_proj": "linear"}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    model = open_clip.CLIP(**deepcopy(config)).eval()
    return model, load_backbone(f"local-dir:{write_folder(folder, config, model.state_dict())}")


@pytest.mark.parametrize("trunk", ["test_vit", "test_convnext", "test_efficientnet"])
def test_timm_blocks(trunk, tmp_path):
    model, frozen = timm_clip(trunk, tmp_path / "m")
    images, trunk = images_for(160, 2), model.visual.trunk
    features, blocks = frozen.encode_image_with_blocks(images)
    assert [block.shape[2] for block in blocks] == list(frozen.vision_widths)
    assert all(block.dim() == 3 and len(block) == 2 for block in blocks)
    with torch.no_grad():
        torch.testing.assert_close(features, F.normalize(model.encode_image(images), dim=-1), rtol=1e-4, atol=1e-5)
        last = trunk.forward_intermediates(images, indices=1, norm=False, intermediates_only=True, output_fmt="NCHW")[0]
    torch.testing.assert_close(
        blocks[-1][:, -last[0, 0].numel() :], last.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4
    )


def test_a_tower_without_known_blocks_still_encodes(tmp_path):
    _, frozen = timm_clip("test_resnet", tmp_path / "m")
    images = images_for(160, 1)
    assert frozen.encode_image(images).shape == (1, 24)
    for ask in (lambda: frozen.vision_widths, lambda: frozen.encode_image_with_blocks(images)):
        with pytest.raises(ValueError, match=r"the image tower \(TimmModel\) has no block outputs"):
            ask()
    assert frozen.describe()["vision_widths"] is None


def test_it_stays_frozen_and_in_evaluation():
    frozen = load_backbone("tiny-resnet:random")
    nn.ModuleList([frozen]).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    images = images_for(64).requires_grad_()
    assert not frozen.encode_image(images).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.state_dict().items())


def test_features_are_float32_of_length_one_and_scale_is_exponentiated():
    frozen = load_backbone("tiny-vit:random")
    features = frozen.encode_image(images_for(32).double())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    assert frozen.logit_scale.shape == () and frozen.logit_scale.dtype == torch.float32
    assert float(frozen.logit_scale) == pytest.approx(1 / 0.07)


def test_images_of_another_size_are_told():
    frozen = load_backbone("tiny-vit:random")
    for shape in ((1, 3, 31, 32), (3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"reads images \[B, 3, 32, 32\], got"):
            frozen.encode_image(torch.zeros(shape))


def test_the_hash_is_over_names_shapes_types_and_bytes(tmp_path):
    model = build("tiny-vit")
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    path = save(model, "safetensors", tmp_path)
    assert load_backbone("tiny-vit", weights=str(path)).weights_hash == digest.hexdigest()
    assert load_backbone("tiny-vit", weights=str(path), precision="bf16").weights_hash == digest.hexdigest()
    model.visual.ln_post.bias.data[3] += 1e-6
    path = save(model, "state dict", tmp_path)
    assert load_backbone("tiny-vit", weights=str(path)).weights_hash != digest.hexdigest()


def test_random_weights_repeat_warn_and_leave_the_random_state_alone(caplog):
    torch.manual_seed(77)
    expected = torch.randn(3)
    torch.manual_seed(77)
    with caplog.at_level(logging.WARNING):
        first = load_backbone("tiny-vit:random")
    assert torch.equal(torch.randn(3), expected)
    assert "RANDOM weights" in caplog.text
    torch.manual_seed(78)
    assert load_backbone("tiny-vit:random").weights_hash == first.weights_hash


def test_half_precision_keeps_norms_and_features_in_float32(tmp_path):
    path = str(save(build("tiny-vit"), "safetensors", tmp_path))
    full, half = load_backbone("tiny-vit", weights=path), load_backbone("tiny-vit", weights=path, precision="bf16")
    block = half.model.visual.transformer.resblocks[0]
    assert block.mlp.c_fc.weight.dtype == torch.bfloat16 and block.ln_1.weight.dtype == torch.float32
    images = images_for(32)
    features, blocks = half.encode_image_with_blocks(images)
    assert {t.dtype for t in (features, *blocks, half.text.encode(TEXTS))} == {torch.float32}
    assert float((features * full.encode_image(images)).sum(1).min()) > 0.999
    assert float(F.cosine_similarity(half.text.encode(TEXTS), full.text.encode(TEXTS)).min()) > 0.999
    context = torch.zeros(2, 4, 64, requires_grad=True)
    half.text.encode_prompts(context, half.text.class_tokens(["dog"])).sum().backward()
    assert context.grad.dtype == torch.float32 and bool(context.grad.any())


def test_impossible_precisions_are_told():
    with pytest.raises(ValueError, match="'fp16' needs a GPU"):
        load_backbone("tiny-vit:random", precision="fp16")
    with pytest.raises(ValueError, match="one of fp32, amp, bf16, fp16"):
        load_backbone("tiny-vit:random", precision="half")


def test_the_description_is_plain_data():
    facts = load_backbone("tiny-resnet:random").describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["vision_widths"] == [64, 128, 256, 512] and facts["image_size"] == [64, 64]
    assert facts["embed_dim"] == 24 and facts["text_width"] == 64 and facts["name"] == "tiny-resnet:random"
