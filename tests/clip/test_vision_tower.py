"""The image tower's own ways to run: fused attention, channels-last ResNets, compiled towers. None changes a result.

Covers `clip/vision_tower.py` against torch's attention and a loop over heads (float64, half precision, masks,
gradients), and against open_clip's whole towers; the layout of ResNets; `compile_images` for any number of images, and
what happens where nothing can be compiled.
"""

import functools
import math
from copy import deepcopy

import open_clip
import pytest
import torch
from torch import nn

from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.vision_tower import SelfAttention, use_fused_attention


def attention(width=24, heads=3, dtype=torch.float64, **options):
    torch.manual_seed(5)
    module = nn.MultiheadAttention(width, heads, batch_first=True, **options).to(dtype).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def by_heads(module, x, mask=None):
    """Attention of each image and head in a loop."""
    width, heads = module.embed_dim, module.num_heads
    size = width // heads
    out = torch.zeros_like(x)
    for image in range(len(x)):
        bias = 0 if module.in_proj_bias is None else module.in_proj_bias
        q, k, v = (x[image] @ module.in_proj_weight.T + bias).split(width, dim=1)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[:, own] @ k[:, own].T / math.sqrt(size)
            scores = scores if mask is None else scores + mask
            out[image, :, own] = scores.softmax(dim=1) @ v[:, own]
    return module.out_proj(out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_attention(bias, masked):
    module = attention(bias=bias)
    x = torch.randn(4, 7, 24, dtype=torch.float64, requires_grad=True)
    mask = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1) if masked else None
    fused = SelfAttention(module)
    found, weights = fused(x, x, x, need_weights=False, attn_mask=mask)
    plain = module(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert weights is None
    torch.testing.assert_close(found, by_heads(module, x, mask), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=1e-12)
    towards = torch.randn_like(found)
    grads = [torch.autograd.grad((out * towards).sum(), x)[0] for out in (found, plain)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_it_has_the_same_weights_under_the_same_names():
    module = attention()
    fused = SelfAttention(module)
    assert list(fused.state_dict()) == list(module.state_dict())
    assert all(a is b for a, b in zip(fused.parameters(), module.parameters()))


def test_under_bfloat16_it_is_as_near_as_the_format_is():
    module = attention(dtype=torch.float32)
    x = torch.randn(4, 50, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SelfAttention(module)(x, x, x)[0]
    assert found.dtype == torch.bfloat16
    expected = by_heads(module, x)
    assert (found.float() - expected).abs().max() < 2**-6 * expected.abs().max()


def test_other_uses_are_refused():
    fused, x = SelfAttention(attention()), torch.zeros(1, 2, 24, dtype=torch.float64)
    for call in (lambda: fused(x, x.clone(), x), lambda: fused(x, x, x.clone()), lambda: fused(x, x, x, True)):
        with pytest.raises(ValueError, match="among themselves"):
            call()


def tower(**options):
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(1)
    return open_clip.CLIP(12, {**vision, **options}, text).eval().requires_grad_(False)


@pytest.mark.parametrize("options, blocks", [
    ({}, 3), ({"ls_init_value": 0.1}, 3), ({"pool_type": "avg"}, 3), ({"layers": [1, 1, 1, 1], "width": 8}, 0),
])  # fmt: skip
def test_whole_towers_give_the_same_features(options, blocks):
    """A ViT, also with layer scale and another pooling; a ResNet has no blocks of this kind and stays as it is."""
    model = tower(**options)
    fused = deepcopy(model)
    assert use_fused_attention(fused.visual) == blocks
    assert list(fused.state_dict()) == list(model.state_dict())
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(fused.encode_image(images), model.encode_image(images), atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fused.encode_image(images).float()
    assert torch.cosine_similarity(half, model.encode_image(images)).min() > 0.999


def test_attention_of_another_form_stays_as_it_is():
    model = tower()
    blocks = model.visual.transformer.resblocks
    blocks[0].attn = attention(32, 2, torch.float32, add_bias_kv=True)
    blocks[1].attn = attention(32, 2, torch.float32, kdim=8, vdim=8)
    blocks[2].attn = nn.MultiheadAttention(32, 2)
    assert use_fused_attention(model.visual) == 0


def test_resnets_are_channels_last_and_vits_are_not():
    resnet, vit = load_backbone("IconsCLIP"), load_backbone("ViT-B-32:random")
    for frozen, layout in ((resnet, torch.channels_last), (vit, torch.contiguous_format)):
        weights = [p for p in frozen.model.visual.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=layout) for p in weights)
    images = torch.randn(5, 3, *resnet.image_size)
    plain = deepcopy(resnet.model.visual).to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        expected = plain(images)
    torch.testing.assert_close(resnet.encode_image(images, normalize=False), expected, atol=1e-5, rtol=1e-5)
    features, blocks = resnet.encode_image_with_blocks(images)
    assert torch.equal(features, resnet.encode_image(images))
    assert [block.shape[2] for block in blocks] == list(resnet.vision_widths)


def test_a_compiled_tower_gives_the_same_features_of_any_number_of_images(monkeypatch):
    """The graph is captured by torch's own compiler and run as it is: machine code is the same for all its users."""
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    frozen = load_backbone("IconsCLIP")
    expected = {size: frozen.encode_image(torch.ones(size, 3, *frozen.image_size)) for size in (2, 3, 9)}
    assert not frozen.describe()["compiled"] and frozen.compile_images() and frozen.describe()["compiled"]
    for size, features in expected.items():
        found = frozen.encode_image(torch.ones(size, 3, *frozen.image_size))
        torch.testing.assert_close(found, features, atol=1e-6, rtol=1e-5)
    assert len(calls) == 1  # one graph serves every number


def test_a_tower_that_cannot_be_compiled_says_so_and_goes_on(monkeypatch, caplog):
    def backend(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with caplog.at_level("WARNING", logger="dassl_clip"):
        frozen = load_backbone("IconsCLIP", compiled=True)
    assert "the image tower is not compiled" in caplog.text and not frozen.describe()["compiled"]
    assert frozen.encode_image(torch.zeros(1, 3, *frozen.image_size)).isfinite().all()
