"""Prompts inside the towers against plain passes of the whole model with rows replaced layer by layer.

Covers: text features and gradients of deep prompts in float64, with fixed words behind them, for several depths, chunk
sizes and kinds of blocks; rows of the shared prefix, equal for all classes in every layer; tokens in the image tower
with fused attention, gradients among them; a tower that is as before afterwards; refusals.
"""

import open_clip
import pytest
import torch
from torch import nn

from dassl_clip.clip.text_tower import TextTower
from dassl_clip.clip.vision_tower import VisionBlocks, use_fused_attention
from dassl_clip.results.errors import UserError
from tests.clip.test_text_tower import NAMES, TEXT, TOKENIZER, plain_rows, randomise, small

TOWERS = {
    "quickgelu": {"quick_gelu": True, "layers": 4},
    "custom-blocks": {"kind": open_clip.CustomTextCLIP, "layers": 4, "qk_norm": True, "scale_attn": True},
}


@pytest.fixture(scope="module")
def towers():
    built = {}

    def get(name):
        if name not in built:
            model = randomise(small(**TOWERS[name])).double()
            built[name] = model, TextTower(model, TOKENIZER())
        return built[name]

    return get


def drawn(*shape, seed=1):
    return (
        0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).requires_grad_()


def plain_text(model, context, deep):
    """Features `[C, E]` of full-length rows, and what enters each layer; the model's own blocks, one by one."""
    owner = getattr(model, "text", model)
    rows, ids = plain_rows(model, NAMES, context, "end")
    x, entered = rows + owner.positional_embedding, []
    for number, block in enumerate(owner.transformer.resblocks):
        if 1 <= number <= len(deep):
            x = torch.cat([x[:, :1], deep[number - 1].expand(len(x), -1, -1), x[:, 1 + deep.shape[1] :]], dim=1)
        entered.append(x)
        x = block(x, attn_mask=owner.attn_mask)
    x = owner.ln_final(x)[torch.arange(len(x)), ids.argmax(1)]
    projection = owner.text_projection
    return (projection(x) if isinstance(projection, nn.Linear) else x @ projection), entered


def outcome(features, *learned):
    """Features and the gradients of an uneven function of them."""
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view(features.shape)
    return features.detach(), *torch.autograd.grad((features.sin() * weights).sum(), learned)


@pytest.mark.parametrize("fixed", [0, 2])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", TOWERS)
def test_text_features_and_gradients_equal_the_plain_pass(towers, name, depth, fixed):
    model, tower = towers(name)
    context, deep = drawn(3, TEXT["width"]), drawn(depth, 3, TEXT["width"], seed=2)
    words = torch.cat([context, drawn(fixed, TEXT["width"], seed=3).detach()])
    expected = outcome(plain_text(model, words, deep)[0], context, deep)
    classes = tower.class_tokens(NAMES)
    for chunk in ("auto", None, 1, 4):
        found = outcome(tower.encode_prompts(words, classes, chunk=chunk, deep=deep), context, deep)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    alone = tower.encode_prompts(words.detach(), classes, chunk=1, deep=deep)  # deep prompts are learned alone
    torch.testing.assert_close(torch.autograd.grad(alone.sum(), deep), torch.autograd.grad(
        tower.encode_prompts(words, classes, deep=deep).sum(), deep), rtol=1e-9, atol=1e-11)  # fmt: skip


def test_a_batch_of_contexts_shares_the_deep_prompts(towers):
    model, tower = towers("quickgelu")
    contexts, deep = drawn(3, 4, TEXT["width"]), drawn(2, 2, TEXT["width"], seed=2)
    expected = torch.stack([plain_text(model, context, deep)[0] for context in contexts])
    found = tower.encode_prompts(contexts, tower.class_tokens(NAMES), deep=deep)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_start_context_and_fixed_rows_are_the_same_for_all_classes_in_every_layer(towers):
    model, _ = towers("quickgelu")
    words, deep = drawn(5, TEXT["width"]), drawn(3, 3, TEXT["width"], seed=2)
    entered = plain_text(model, words, deep)[1]
    for x in entered:
        shared = x[:, :6]
        torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=1e-12)
    assert not torch.allclose(entered[-1][0, 6], entered[-1][1, 6])


@pytest.mark.parametrize(
    ("deep", "settings", "sentence"),
    [
        ((4, 2, 32), {}, r"K up to 3 \(a depth of 4\) and M up to the 4 context tokens .*, got \[4, 2, 32\]"),
        ((2, 5, 32), {}, r"M up to the 4 context tokens"),
        ((2, 4, 31), {}, r"\[K, M, 32\]"),
        ((2, 4, 32), {"position": "middle"}, r"M up to the 2 context tokens"),
    ],
)
def test_deep_prompts_that_do_not_fit_are_refused(towers, deep, settings, sentence):
    _, tower = towers("quickgelu")
    with pytest.raises(UserError, match=sentence):
        tower.encode_prompts(drawn(4, 32), tower.class_tokens(NAMES), deep=drawn(*deep), **settings)


def test_other_towers_take_no_deep_prompts():
    model = randomise(small(open_clip.CustomTextCLIP, no_causal_mask=True)).double()
    tower = TextTower(model, TOKENIZER())
    with pytest.raises(UserError, match="deep prompts need a causal text tower"):
        tower.encode_prompts(drawn(4, 32), tower.class_tokens(NAMES), deep=drawn(1, 4, 32))


# ------------------------------------------------------------------------------------------------- image tower

VISION = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}


@pytest.fixture
def visual():
    torch.manual_seed(0)
    model = open_clip.CLIP(24, VISION, TEXT, quick_gelu=True)
    return randomise(model).double().visual


def plain_image(visual, images, prompts):
    """Features `[B, E]` with tokens behind those of the image, layer by layer."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1))
    for number, block in enumerate(visual.transformer.resblocks):
        if 1 <= number < len(prompts):
            x = torch.cat([x[:, : -len(prompts[0])], prompts[number].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return visual.ln_post(x)[:, 0] @ visual.proj


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_image_features_and_gradients_equal_the_plain_pass(visual, depth):
    images, prompts = drawn(2, 3, 32, 32).detach(), [drawn(3, 32, seed=k) for k in range(depth)]
    expected = outcome(plain_image(visual, images, prompts), *prompts)
    before = visual(images)
    use_fused_attention(visual)
    blocks = VisionBlocks(visual, (32, 32))
    with blocks.prompting(prompts):
        found = outcome(visual(images), *prompts)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(visual(images), before, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(before, expected[0])


@pytest.mark.parametrize("shapes", [[(3, 32)] * 5, [(3, 31)], [(3, 32), (2, 32)], []])
def test_tokens_that_do_not_fit_are_refused(visual, shapes):
    with pytest.raises(UserError, match=r"takes learned tokens \[M, 32\] for 1 to 4 blocks, got"):
        VisionBlocks(visual, (32, 32)).prompting([drawn(*shape) for shape in shapes]).__enter__()


def test_a_resnet_takes_no_tokens():
    model = open_clip.CLIP(24, {"layers": (1, 1, 1, 1), "width": 8, "patch_size": None, "image_size": 32}, TEXT)
    with pytest.raises(UserError, match=r"ModifiedResNet\) takes no learned tokens; methods .* such as MaPLe"):
        _ = VisionBlocks(model.visual, (32, 32)).prompt_width
