"""The text tower against a plain rewriting: full-length rows, the model's transformer, mask, pooling and projection.

Covers: features and gradients of prompts in float32 and float64, for class-name positions end, middle and front, with a
shared, an image-conditioned and a class-specific context, for several chunk sizes and memory budgets, on causal towers
(gelu, quickgelu, layer scale, open_clip's custom blocks, end-of-text by largest id and by its own id, real ViT-B-32 and
RN50 sizes) and on towers of the plain path (SigLIP's, CoCa's, MobileCLIP's kind); whole texts
against `encode_text`; half precision and autocast; tokens as CoOp's sentence has them; errors.
"""

import logging
from copy import deepcopy
from functools import cache

import open_clip
import pytest
import torch
from torch import Tensor, nn

from dassl_clip.clip.prompts import initial_context
from dassl_clip.clip.text_tower import TextTower

TOKENIZER = cache(open_clip.SimpleTokenizer)  # reading its merges takes longer than what most tests do
NAMES = ["dog", "great_white shark", "Llama glama pacos fur coat", "U.S.", "it", "airplane"]
VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
SPICE = dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
PLAIN = ("siglip", "coca", "mobileclip")
CAUSAL = ("gelu", "quickgelu", "layer-scale", "custom-blocks", "eos", "one-layer")


def small(kind: type = open_clip.CLIP, quick_gelu: bool = False, **text) -> nn.Module:
    extra = {}
    if kind is open_clip.CoCa:
        extra["multimodal_cfg"] = {"width": 32, "heads": 2, "layers": 1}
    return kind(embed_dim=24, vision_cfg=VISION, text_cfg={**TEXT, **text}, quick_gelu=quick_gelu, **extra)


BUILDERS = {
    "gelu": lambda: small(),
    "quickgelu": lambda: small(quick_gelu=True),
    "layer-scale": lambda: small(open_clip.CustomTextCLIP, ls_init_value=0.7, proj_bias=True),
    "custom-blocks": lambda: small(open_clip.CustomTextCLIP, **SPICE),
    "eos": lambda: small(pool_type="eos", eos_id=49407),
    "one-layer": lambda: small(layers=1),
    "siglip": lambda: small(
        open_clip.CustomTextCLIP, context_length=64, no_causal_mask=True, pool_type="last", proj_bias=True
    ),
    "coca": lambda: small(open_clip.CoCa, context_length=76, embed_cls=True, output_tokens=True),
    "mobileclip": lambda: small(open_clip.CustomTextCLIP, no_causal_mask=True),
}


def randomise(model: nn.Module) -> nn.Module:
    """Frozen, with weights large enough that every part of the tower matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.add_(0.1 * noise)
        elif "embedding" in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def towers():
    """Models and towers by name, built once, in float64."""
    built = {}

    def get(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, TextTower]:
        if (name, dtype) not in built:
            model = randomise(BUILDERS[name]()).to(dtype)
            length = getattr(model, "text", model).context_length
            built[name, dtype] = model, TextTower(model, TOKENIZER(context_length=length))
        return built[name, dtype]

    return get


def plain_rows(model: nn.Module, names: list[str], context: Tensor, position: str) -> tuple[Tensor, Tensor]:
    """CoOp's full-length rows `[C, context_length, D]` for a context `[M, D]` or contexts `[C, M, D]`, and ids."""
    owner = getattr(model, "text", model)
    tokenizer = TOKENIZER(context_length=owner.context_length)
    m = context.shape[-2]
    contexts = context if context.dim() == 3 else context.expand(len(names), -1, -1)
    names = [name.replace("_", " ") for name in names]
    ids = tokenizer([" ".join(["X"] * m) + " " + name + "." for name in names])
    rows = []
    for row, ctx, name in zip(owner.token_embedding(ids), contexts, names):
        n = len(tokenizer.encode(name))
        start, tail = row[:1], row[1 + m :]
        if position == "end":
            parts = [start, ctx, tail]
        elif position == "middle":
            parts = [start, ctx[: m // 2], tail[:n], ctx[m // 2 :], tail[n:]]
        else:
            parts = [start, tail[:n], ctx, tail[n:]]
        rows.append(torch.cat(parts))
    return torch.stack(rows), ids


def plain_read(model: nn.Module, rows: Tensor, ids: Tensor) -> Tensor:
    """Features of full-length rows through the model's own transformer."""
    owner = getattr(model, "text", model)
    if getattr(owner, "cls_emb", None) is not None:
        rows = torch.cat([rows, owner.cls_emb.expand(len(rows), 1, -1)], dim=1)
    x = rows + owner.positional_embedding
    mask = owner.attn_mask
    if getattr(owner, "cls_emb", None) is not None:
        mask = mask + owner._build_additive_mask(ids, x.shape[1], x.dtype)
        x = owner.ln_final(owner.transformer(x, attn_mask=mask)[:, -1])
    else:
        pool = getattr(owner, "text_pool_type", getattr(owner, "pool_type", None))
        ends = {"last": torch.full((len(ids),), -1), "eos": (ids == 49407).int().argmax(1)}.get(pool, ids.argmax(1))
        x = owner.ln_final(owner.transformer(x, attn_mask=mask))[torch.arange(len(ids)), ends]
    projection = owner.text_projection
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def plain_prompts(model: nn.Module, names: list[str], context: Tensor, position: str, specific: bool) -> Tensor:
    """The prompts' features, one pass for each image."""
    if specific or context.dim() == 2:
        return plain_read(model, *plain_rows(model, names, context, position))
    return torch.stack([plain_read(model, *plain_rows(model, names, ctx, position)) for ctx in context])


def a_context(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return (0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)).requires_grad_()


def both(features: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Features and the gradient of an uneven function of them."""
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view(features.shape)
    (gradient,) = torch.autograd.grad((features.sin() * weights).sum(), context)
    return features.detach(), gradient


SHAPES = {"shared": (5, 32), "batch": (3, 4, 32), "batch-of-one": (1, 1, 32), "specific": (len(NAMES), 4, 32)}


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", [*CAUSAL, *PLAIN])
def test_prompts_and_gradients_equal_the_plain_path(towers, name, kind, position):
    model, tower = towers(name)
    assert tower.causal == (name in CAUSAL)
    specific = kind == "specific"
    context = a_context(*SHAPES[kind])
    expected = both(plain_prompts(model, NAMES, context, position, specific), context)
    classes = tower.class_tokens(NAMES)
    found = both(tower.encode_prompts(context, classes, position=position, class_specific=specific), context)
    assert found[0].shape == expected[0].shape
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("name", ["gelu", "quickgelu", "custom-blocks", "siglip"])
def test_float32_is_as_close_as_float32_gets(towers, name, position):
    model, tower = towers(name, torch.float32)
    double, _ = towers(name)
    context = a_context(3, 4, 32, dtype=torch.float32)
    exact = context.detach().double().requires_grad_()
    expected = both(plain_prompts(double, NAMES, exact, position, False), exact)
    plain = both(plain_prompts(model, NAMES, context, position, False), context)
    found = both(tower.encode_prompts(context, tower.class_tokens(NAMES), position=position), context)
    assert found[0].dtype == found[1].dtype == torch.float32
    for ours, theirs, truth in zip(found, plain, expected):
        scale = truth.abs().max()
        assert (ours - truth).abs().max() <= max(3 * (theirs - truth).abs().max(), 2e-6 * scale)


@pytest.mark.parametrize("architecture", ["ViT-B-32-quickgelu", "RN50", "ViT-L-14"])
def test_real_sizes(architecture):
    config = open_clip.get_model_config(architecture)
    config["text_cfg"]["layers"] = 2
    config["vision_cfg"] = VISION
    config.pop("custom_text", None)
    model = open_clip.CLIP(**config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tower = TextTower(model.eval(), TOKENIZER())
    context = (0.02 * torch.randn(4, tower.width, generator=torch.Generator().manual_seed(0))).requires_grad_()
    expected = both(plain_prompts(model, NAMES[:3], context, "end", False), context)
    found = both(tower.encode_prompts(context, tower.class_tokens(NAMES[:3])), context)
    assert (tower.width, tower.embed_dim) == (config["text_cfg"]["width"], config["embed_dim"])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5 * float(expected[1].abs().max()))


@pytest.mark.parametrize("name", ["quickgelu", "coca"])
@pytest.mark.parametrize("kind", SHAPES)
def test_chunks_change_nothing(towers, name, kind):
    _, tower = towers(name)
    specific = kind == "specific"
    context = a_context(*SHAPES[kind])
    classes = tower.class_tokens(NAMES)

    def run(chunk: int | str | None) -> tuple[Tensor, Tensor]:
        features = tower.encode_prompts(context, classes, position="middle", chunk=chunk, class_specific=specific)
        return both(features, context)

    whole = run(None)
    for chunk in (1, 2, 4, 100, "auto"):
        for ours, theirs in zip(run(chunk), whole):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_small_memory_budget_keeps_little_and_changes_nothing(towers):
    tower = deepcopy(towers("gelu")[1])
    names = [f"{name} number {k}" for k in range(8) for name in NAMES]
    classes, context = tower.class_tokens(names), a_context(2, 4, 32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}

    def run(budget: int) -> tuple[Tensor, Tensor, int]:
        tower.memory_budget = budget
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = tower.encode_prompts(context, classes)
        size = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
        return *both(features, context), size

    large, half, little = run(1 << 30), run(3 << 19), run(1 << 18)
    assert large[2] > 5 << 19  # everything is kept
    assert half[2] < 3 << 19
    assert little[2] < 1 << 19
    for other in (half, little):
        torch.testing.assert_close(other[0], large[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other[1], large[1], rtol=1e-10, atol=1e-12)


def test_no_contexts_and_no_gradients(towers):
    _, tower = towers("gelu")
    classes = tower.class_tokens(NAMES)
    assert tower.encode_prompts(torch.zeros(0, 4, 32), classes).shape == (0, len(NAMES), 24)
    assert not tower.encode_prompts(a_context(4, 32).detach(), classes).requires_grad
    with torch.no_grad():
        assert not tower.encode_prompts(a_context(4, 32), classes).requires_grad


TEXTS = [
    "a photo of a dog.",
    "a photo of a cat.",
    "",
    "a photo of a dog.",
    "wow!! 42 &amp; café",
    "word " * 90,
    "a photo",
]


@pytest.mark.parametrize("chunk", ["auto", None, 1, 3])
@pytest.mark.parametrize("name", [*CAUSAL, *PLAIN])
def test_whole_texts_equal_the_models_own_pass(towers, name, chunk):
    model, tower = towers(name)
    ids = TOKENIZER(context_length=tower.context_length)(TEXTS)
    assert torch.equal(tower.tokenize(TEXTS), ids)
    expected = model.encode_text(ids, normalize=False)
    for texts in (TEXTS, ids):
        torch.testing.assert_close(tower.encode(texts, chunk=chunk), expected, rtol=1e-9, atol=1e-11)


def test_prompts_with_a_words_context_are_the_sentence(towers):
    model, tower = towers("quickgelu")
    ids = tower.tokenize(["a photo of a"])[0, 1:5]
    prompts = tower.encode_prompts(tower.embed(ids), tower.class_tokens(NAMES))
    sentences = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    torch.testing.assert_close(prompts, model.encode_text(tower.tokenize(sentences)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["quickgelu", "eos", "siglip"])
def test_half_precision_weights_and_autocast_give_float32(towers, name):
    model, tower = towers(name, torch.float32)
    classes, context = tower.class_tokens(NAMES), a_context(2, 4, 32, dtype=torch.float32)
    expected, gradient = both(tower.encode_prompts(context, classes), context)
    half = deepcopy(model)
    for module in half.modules():
        if isinstance(module, nn.Linear | nn.MultiheadAttention):
            module.to(torch.bfloat16)
    if isinstance(half, open_clip.CLIP):
        half.text_projection.data = half.text_projection.data.to(torch.bfloat16)
    half_tower = TextTower(half, TOKENIZER(context_length=tower.context_length))
    found = [both(half_tower.encode_prompts(context, classes), context)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(both(tower.encode_prompts(context, classes, chunk=2), context))
        text = tower.encode(TEXTS)
    assert text.dtype == torch.float32
    for features, grad in found:
        assert features.dtype == grad.dtype == torch.float32
        assert (features - expected).norm() < 0.03 * expected.norm()
        assert (grad - gradient).norm() < 0.1 * gradient.norm()


def test_class_tokens_are_those_of_the_sentence(towers):
    _, tower = towers("gelu")
    classes = tower.class_tokens(NAMES)
    tokenizer = TOKENIZER()
    for k, name in enumerate(NAMES):
        sentence = tokenizer([f"X X X X {name.replace('_', ' ')}."])[0]
        wanted = sentence[5 : int(sentence.argmax()) + 1].tolist()
        assert classes.ids[k, : classes.lengths[k]].tolist() == wanted
        assert classes.name_lengths[k] == len(tokenizer.encode(name.replace("_", " ")))
    assert classes.classnames[1] == "great white shark"
    bare = tower.class_tokens(["dog"], suffix="")
    assert bare.lengths == (2,)


def test_weights_are_read_and_never_copied(towers):
    model, tower = towers("gelu")
    model = deepcopy(model)
    tower = TextTower(model, TOKENIZER())
    before = tower.encode(["a dog"])
    with torch.no_grad():
        model.transformer.resblocks[1].mlp.c_fc.weight.mul_(1.5)
    assert not torch.allclose(tower.encode(["a dog"]), before)
    torch.testing.assert_close(tower.encode(["a dog"]), model.encode_text(tower.tokenize(["a dog"])))


def test_permuted_classes_permute_the_features(towers):
    _, tower = towers("gelu")
    context, order = a_context(4, 32), [3, 0, 5, 1, 4, 2]
    features = tower.encode_prompts(context, tower.class_tokens(NAMES))
    permuted = tower.encode_prompts(context, tower.class_tokens([NAMES[k] for k in order]))
    torch.testing.assert_close(permuted, features[order], rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------------ errors


def test_a_class_that_does_not_fit_is_named_with_its_length(towers):
    _, tower = towers("gelu")
    names = ["dog", "antidisestablishmentarianism " * 12]
    with pytest.raises(ValueError, match=r"77 tokens; 1 for the start and 16 .*antidis.*\d+ tokens.*N_CTX"):
        tower.class_tokens(names, n_ctx=16)
    with pytest.raises(ValueError, match=r"leave 6 .*great white shark") as error:
        tower.encode_prompts(a_context(70, 32), tower.class_tokens(["dog", "great_white shark is here to stay"]))
    assert "'dog'" not in str(error.value)


def test_a_name_that_just_fits_is_taken(towers):
    model, tower = towers("gelu")
    classes = tower.class_tokens(["dog"])
    context = a_context(73, 32)
    expected = plain_prompts(model, ["dog"], context, "end", False)
    torch.testing.assert_close(tower.encode_prompts(context, classes), expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="too few for 'dog'"):
        tower.encode_prompts(a_context(74, 32), classes)


@pytest.mark.parametrize("names", [[], ["dog", " "], "dog"])
def test_unusable_class_names(towers, names):
    with pytest.raises(ValueError, match=r"class names? must"):
        towers("gelu")[1].class_tokens(names)


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((4, 47), {}, r"\[M, 32\] or \[B, M, 32\], got \[4, 47\]"),
        ((2, 3, 4, 32), {}, r"got \[2, 3, 4, 32\]"),
        ((5, 4, 32), {"class_specific": True}, r"\[6, M, 32\], got \[5, 4, 32\]"),
        ((4, 32), {"class_specific": True}, r"\[6, M, 32\], got \[4, 32\]"),
        ((4, 32), {"position": "begin"}, "end, middle, front, not at 'begin'"),
        ((4, 32), {"chunk": 0}, "chunk must be"),
        ((4, 32), {"chunk": "all"}, "chunk must be"),
    ],
)
def test_wrong_arguments_are_told(towers, shape, options, message):
    _, tower = towers("gelu")
    with pytest.raises(ValueError, match=message):
        tower.encode_prompts(a_context(*shape), tower.class_tokens(NAMES), **options)


def test_a_cut_text_is_warned_about(towers, caplog):
    _, tower = towers("gelu")
    with caplog.at_level(logging.WARNING):
        tower.tokenize(["short", "far too long " * 40])
    assert "1 of 2 texts are longer than the text tower's 77 tokens" in caplog.text


class Sentences:
    """A tokenizer as SigLIP's: no start token, 1 for end-of-text and padding, ids of words by their rank."""

    words = ("a", "cat", "dog", "of", "photo", "x", "zebra", ".")

    def __call__(self, texts, context_length):
        rows = torch.ones(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts):
            ids = [100 + 7 * self.words.index(w) for w in text.lower().replace(".", " .").split()][: context_length - 1]
            row[: len(ids)] = torch.tensor(ids)
        return rows


@pytest.mark.parametrize("text", ["a photo of a", "zebra photo of a", "photo"])
def test_the_first_context_of_a_tokenizer_without_a_start(text):
    """All words, whichever has the largest id; against the embeddings of the words one by one."""
    tower = TextTower(randomise(BUILDERS["siglip"]()), Sentences())
    wanted = [tower.embed(torch.tensor(100 + 7 * Sentences.words.index(word))) for word in text.split()]
    assert torch.equal(initial_context(tower, text, 4), torch.stack(wanted).float())


def test_the_first_context_of_clip(towers):
    _, tower = towers("gelu")
    ids = TOKENIZER().encode("a photo of a")
    assert torch.equal(initial_context(tower, "a_photo of a", 9), tower.embed(torch.tensor(ids)).float())
