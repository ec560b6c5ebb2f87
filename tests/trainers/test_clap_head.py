"""CLAP's head, texts, augmentation and tables.

Covers: the head against its formula, its gradients, its precision under autocast; the authors' state dicts by name,
with prefixes, refusals of missing keys, wrong shapes and other widths; the 480 texts against an independent nesting and
1,408 augmented ones against an independent enumeration; switches and probabilities; random words, prompt files and
their errors; dropped words and swapped sides; tables index by index; noise tokens and the form NC against a plain
full-length reading by the model's own transformer.
"""

import itertools

import open_clip
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.prompts import noise_context, noise_features
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.trainers.clap.head import (
    ContentHead,
    check_trained,
    check_widths,
    head_widths,
    is_published,
    published_network,
    published_state,
)
from dassl_clip.trainers.clap.texts import (
    Augmentation,
    PromptWords,
    WordDropping,
    file_texts,
    prompt_words,
    random_word_texts,
    source_tables,
    template_tables,
    training_texts,
)

# ------------------------------------------------------------------------------------------------------- the head


def a_head(embed_dim=6, latent=4, alpha=0.3, dtype=torch.float64, seed=0):
    head = ContentHead(embed_dim, latent, alpha).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return head


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0, 0.056])
def test_head_equals_its_formula_in_both_modes(alpha, training):
    head, x = a_head().train(training), torch.randn(2, 3, 6, dtype=torch.float64)
    inside = (x * torch.sigmoid(x)) @ head.linear.weight.T + head.linear.bias
    expected = x + (0.3 if alpha is None else alpha) * (inside @ head.projection.weight.T)
    torch.testing.assert_close(head(x, alpha), expected, rtol=1e-12, atol=1e-12)


def test_a_new_head_is_the_identity_and_learns():
    head, x = ContentHead(5, 3, alpha=2.0), torch.randn(7, 5)
    assert torch.equal(head(x), x)
    head(x).square().sum().backward()
    assert head.projection.weight.grad.abs().max() > 0
    assert head.projection.bias is None and head.alpha == 2.0


def test_head_gradients_equal_finite_differences():
    head, x = a_head(), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    parameters = dict(head.named_parameters())

    def read(x, *values):
        return torch.func.functional_call(head, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(read, (x, *parameters.values()))


def test_head_computes_in_float32_under_autocast_and_for_half_features():
    head, x = a_head(dtype=torch.float32), torch.randn(4, 6)
    plain = head(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), plain)
    assert torch.equal(head(x.half()), head(x.half().float()))


def authors_state(latent=4, embed_dim=6, prefix="", dtype=torch.float32):
    state = {}
    for offset, network in enumerate(("network_beta", "network_psi")):
        generator = torch.Generator().manual_seed(offset)
        for key, shape in (
            ("linear.weight", (latent, embed_dim)),
            ("linear.bias", (latent,)),
            ("projection.weight", (embed_dim, latent)),
        ):
            state[f"{prefix}{network}.{key}"] = torch.randn(shape, generator=generator).to(dtype)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_states_load_strictly(prefix):
    state = authors_state(prefix=prefix, dtype=torch.float16)
    assert is_published(state)
    head = ContentHead(6, 4, alpha=0.056)
    head.load_state_dict(published_state(state))
    for name, value in head.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[f"{prefix}network_beta.{name}"].float())
    assert head_widths(published_state(state)) == (6, 4)


def test_states_that_are_not_published_are_refused_by_name():
    state = authors_state()
    del state["network_beta.linear.bias"]
    with pytest.raises(ValueError, match=r"network_beta\.linear\.bias missing"):
        published_state(state)
    with pytest.raises(ValueError, match="it has no keys at all"):
        published_state({})
    assert not is_published(a_head().state_dict())
    state = authors_state()
    state["network_beta.projection.weight"] = torch.zeros(6, 5)
    with pytest.raises(ValueError, match=r"got \[4, 6\], \[4\], \[6, 5\]"):
        published_state(state)
    with pytest.raises(ValueError, match=r"missing: projection\.weight"):
        head_widths({"linear.weight": torch.zeros(2, 2), "linear.bias": torch.zeros(2)})


def untrained(state, network):
    return state | {f"{network}.projection.weight": torch.zeros(6, 4)}


def test_heads_of_images_are_those_of_the_other_network_and_untrained_ones_are_refused():
    """(row 7.6) Im.Aug's published heads have a projection of zeros in network_beta."""
    state = authors_state()
    assert published_network(state) == "network_beta"
    images = untrained(state, "network_beta")
    assert published_network(images) == "network_psi"
    assert torch.equal(published_state(images)["projection.weight"], state["network_psi.projection.weight"])
    only = {key: value for key, value in state.items() if "psi" in key}
    assert torch.equal(published_state(only)["linear.bias"], state["network_psi.linear.bias"])
    texts = {key: value for key, value in images.items() if "beta" in key}
    for wrong in (untrained(images, "network_psi"), texts):
        with pytest.raises(ValueError, match="not trained: its projection is all zero"):
            published_state(wrong)
    with pytest.raises(ValueError, match="not trained"):
        check_trained(ContentHead(6, 4).state_dict())


def test_another_width_is_refused_by_a_sentence():
    state = published_state(authors_state(latent=4, embed_dim=6))
    check_widths(state, 6, 4)
    with pytest.raises(ValueError, match="features of width 6, but this backbone's have width 768"):
        check_widths(state, 768, 4)
    with pytest.raises(ValueError, match="latent width of 4, but 512 is configured"):
        check_widths(state, 6, 512)


# ---------------------------------------------------------------------------------------------------------- texts

KINDS = "painting sketch cartoon clipart photograph infograph mosaic_art sculpture".replace(" ", ",")
KINDS = [kind.replace("_", " ") for kind in KINDS.split(",")]
SIZES = ["a large", "a normal sized", "a small"]
STYLES = ["a realistic", "an impressionistic"]
COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "multicolored"]


def test_the_480_texts_stand_in_the_published_order():
    expected = []
    for kind in KINDS:
        for size in SIZES:
            for style in STYLES:
                for colour in COLOURS:
                    expected.append(f"{style} {kind} of {size} {colour} polar bear")
    assert len(expected) == 480
    assert training_texts("polar_bear") == expected
    assert training_texts("dog")[0] == "a realistic painting of a large red dog"
    assert training_texts("dog")[-1] == "an impressionistic sculpture of a small multicolored dog"


def test_augmented_forms_word_for_word():
    words = PromptWords("elephant", "mosaic art", "normal sized", "impressionistic", "orange")
    assert words.render() == "an impressionistic mosaic art of a normal sized orange elephant"
    assert words.render(swap=True) == "a normal sized orange elephant in an impressionistic mosaic art style"
    assert words.render(drop_size=True) == "an impressionistic mosaic art of a orange elephant"
    assert words.render(drop_size=True, drop_colour=True) == "an impressionistic mosaic art of a elephant"
    assert words.render(drop_type_style=True) == "a normal sized orange elephant"
    assert words.render(drop_type_style=True, swap=True) == "a normal sized orange elephant"
    dog = PromptWords("dog", "painting", "large", "realistic", "red")
    assert dog.render(drop_size=True, swap=True) == "a red dog in a realistic painting style"
    assert words.render(drop_type=True) == "an impressionistic of a normal sized orange elephant"
    assert words.render(drop_type=True, swap=True) == "a normal sized orange elephant in an impressionistic style"
    assert words.render(drop_style=True) == "an mosaic art of a normal sized orange elephant"
    assert dog.render(drop_style=True, swap=True) == "a large red dog in a painting style"
    assert dog.render(drop_type=True, drop_style=True, drop_size=True) == "a red dog"


def enumerated(name: str, without_picture: bool) -> set[str]:
    """Every text that can occur, put together from word lists with an empty entry."""
    texts = set()
    for size, colour in itertools.product(["a", *SIZES], ["", *COLOURS]):
        thing = " ".join(f"{size} {colour} {name}".split())
        for style, kind in itertools.product(STYLES, KINDS):
            texts |= {f"{style} {kind} of {thing}", f"{thing} in {style} {kind} style"}
        if without_picture:
            texts.add(thing)
    return texts


def distinct_texts(name: str, *chances: float, **named: float) -> list[str]:
    """All texts of a class that can occur."""
    tables = template_tables([name], Augmentation(*chances, **named))
    return [tables.texts[k] for k in torch.cat([tables.prompts, tables.augmented.flatten()]).unique()]


def test_1408_distinct_texts_by_independent_enumeration():
    texts = distinct_texts("fire_truck")
    assert len(texts) == len(set(texts)) == 1408
    assert set(texts) == enumerated("fire truck", without_picture=False)
    more = distinct_texts("dog", drop_type_style=0.5)
    assert len(more) == 1452 and set(more) == enumerated("dog", without_picture=True)
    assert distinct_texts("dog", 0, 0, 0, 0) == training_texts("dog")
    assert len(distinct_texts("dog", 1, 1, 0, 0)) == 480 + 16  # each picture of "a dog"
    # (row 7.10) The type goes alone: two styles, before and after each of 44 dogs.
    typeless = set(distinct_texts("dog", drop_type=1.0)) - set(training_texts("dog"))
    things = [" ".join(f"{s} {c} dog".split()) for s, c in itertools.product(["a", *SIZES], ["", *COLOURS])]
    assert typeless == {t for s in STYLES for thing in things for t in (f"{s} of {thing}", f"{thing} in {s} style")}


def test_outcomes_are_the_products_of_the_decisions():
    outcomes = Augmentation(0.2, 0.5, 0.1, 1.0).outcomes()
    assert sum(outcomes.values()) == pytest.approx(1)
    assert all(decisions[3] for decisions in outcomes) and len(outcomes) == 8
    assert outcomes[True, False, True, True, False, False] == pytest.approx(0.2 * 0.5 * 0.1)
    alone = Augmentation(drop_size=0.2, drop_colour=0.3, swap=0, drop_type=0.4, drop_style=0.1).outcomes()
    assert len(alone) == 16 and alone[True, False, False, False, True, False] == pytest.approx(0.2 * 0.7 * 0.4 * 0.9)
    default = Augmentation().outcomes()
    assert len(default) == 8 and set(default.values()) == {0.125} and not any(d[2] for d in default)
    for wrong in ({"swap": 1.5}, {"drop_size": -0.1}):
        with pytest.raises(ValueError, match=f"probability {next(iter(wrong))} .* between 0 and 1"):
            Augmentation(**wrong)


def test_empty_class_names_are_refused():
    for call in (training_texts, random_word_texts, lambda name: template_tables(["dog", name])):
        with pytest.raises(ValueError, match="class name must not be empty"):
            call("_ ")


# ------------------------------------------------------------------------------------------------- other sources


def test_random_words_are_seeded_and_stand_around_the_name():
    texts = random_word_texts("sea_lion", seed=3)
    assert len(texts) == 480 and texts == random_word_texts("sea_lion", seed=3) != random_word_texts("sea_lion", seed=4)
    assert [t.replace("sea lion", "dog") for t in texts] == random_word_texts("dog", seed=3)
    before, after = zip(*(map(str.split, text.split("sea lion")) for text in texts))
    assert {len(side) for side in before} == {1, 2, 3, 4} and {len(side) for side in after} == {0, 1, 2, 3, 4}
    assert all(3 <= len(w) <= 8 and w.isalpha() and w.islower() for side in before + after for w in side)


def test_prompt_files_serve_all_classes_or_one():
    lines = ["# comment", "a {} on grass\n", "", "Sea_Lion\ta {} on a rock", "dog\tthe {}, barking"]
    assert file_texts("sea_lion", lines) == ["a sea lion on grass", "a sea lion on a rock"]
    assert file_texts("dog", lines) == ["a dog on grass", "the dog, barking"]
    with pytest.raises(ValueError, match="no text for the class 'cat'"):
        file_texts("cat", lines[3:])
    with pytest.raises(ValueError, match="no text for the class 'cat'"):
        file_texts("cat", [])
    for wrong in ("a photo", "a {} and a {}", "dog\ta photo"):
        with pytest.raises(ValueError, match=r"line 2 .* exactly one \{\}"):
            file_texts("dog", ["a {}", wrong])


def is_subsequence(some, whole):
    rest = iter(whole)
    return all(word in rest for word in some)


def test_dropped_words_keep_the_name_and_the_order():
    text = "one two three great white shark, four five"
    forms = WordDropping(drop=0.4, swap=0.5, forms=400, seed=1).augmented(text, "great_white_shark")
    assert forms == WordDropping(drop=0.4, swap=0.5, forms=400, seed=1).augmented(text, "great white shark")
    kept = []
    for form in forms:
        before, after = (side.split() for side in form.split("great white shark,"))
        plain = is_subsequence(before, ["one", "two", "three"]) and is_subsequence(after, ["four", "five"])
        swapped = is_subsequence(before, ["four", "five"]) and is_subsequence(after, ["one", "two", "three"])
        assert plain or swapped
        kept.append(len(before) + len(after))
    assert sum(kept) / len(kept) == pytest.approx(5 * 0.6, abs=0.25)
    assert any(form.startswith(("four", "five")) for form in forms)


def test_dropped_words_in_closed_forms():
    text = "cartoon art of a cat art."
    assert set(WordDropping(0, 0).augmented(text, "cat art")) == {text}
    assert set(WordDropping(0, 1).augmented("a big cat on grass", "cat")) == {"on grass cat a big"}
    assert set(WordDropping(1, 0.5).augmented(text, "cat art")) == {"cat art."}
    assert set(WordDropping(0, 1).augmented("a cartoon of art here", "art")) == {"here art a cartoon of"}
    assert set(WordDropping(0, 1).augmented("a smart art here", "art")) == {"here art a smart"}
    assert set(WordDropping(1, 0.5).augmented("no name here", "cat")) == {"no name here"}
    assert len(WordDropping(forms=3).augmented(text, "cat art")) == 3
    with pytest.raises(ValueError, match="probability drop"):
        WordDropping(drop=2)


# --------------------------------------------------------------------------------------------------------- tables

NAMES = ["dog", "fire_truck", "dog", "red dog"]


def test_template_tables_index_by_index():
    augmentation = Augmentation(0.3, 0.5, 0.2, 0.5)
    tables = template_tables(NAMES, augmentation)
    assert len(tables.texts) == len(set(tables.texts))
    assert tables.classnames == ("dog", "fire truck", "dog", "red dog")
    assert [tables.texts[k] for k in tables.names] == list(tables.classnames)
    assert tables.counts.tolist() == [480] * 4
    decisions = [(*four, False, False) for four in itertools.product((False, True), repeat=4)]
    chances = [(0.3 if a else 0.7) * 0.5 * (0.2 if c else 0.8) * 0.5 for a, _, c, *_ in decisions]
    torch.testing.assert_close(tables.probabilities, torch.tensor(chances, dtype=torch.float64))
    row = 0
    for name in tables.classnames:
        for kind, size, style, colour in itertools.product(KINDS, SIZES, STYLES, COLOURS):
            words = PromptWords(name, kind, size.split(" ", 1)[1], style.split(" ", 1)[1], colour)
            assert tables.texts[tables.prompts[row]] == words.render()
            if row % 37 == 0:
                forms = [tables.texts[k] for k in tables.augmented[row]]
                assert forms == [words.render(*decision) for decision in decisions]
            row += 1
    words = prompt_words("dog")
    every = {form.replace("dog", "{}") for w in words for form in (w.render(), *(w.render(*d) for d in decisions))}
    assert set(tables.texts) == {form.replace("{}", name) for name in tables.classnames for form in ("{}", *every)}


def test_source_tables_of_classes_with_different_numbers_of_texts():
    texts = [["a dog", "my dog runs"], ["the cat"], ["some dog", "a dog", "one dog more"]]
    dropping = WordDropping(forms=5, seed=2)
    tables = source_tables(["dog", "cat", "dog"], texts, dropping)
    assert tables.counts.tolist() == [2, 1, 3]
    flat = [(text, name) for own, name in zip(texts, ["dog", "cat", "dog"]) for text in own]
    assert [tables.texts[k] for k in tables.prompts] == [text for text, _ in flat]
    assert [[tables.texts[k] for k in row] for row in tables.augmented] == [dropping.augmented(*pair) for pair in flat]
    torch.testing.assert_close(tables.probabilities, torch.full((5,), 0.2, dtype=torch.float64))
    assert len(tables.texts) == len(set(tables.texts))


# ---------------------------------------------------------------------------------------------------------- noise


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
        model = open_clip.CLIP(embed_dim=16, vision_cfg=small, text_cfg=text).double().eval().requires_grad_(False)
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_noise_is_seeded_and_has_its_deviation():
    def draw(**more):
        return noise_context(4, 512, generator=torch.Generator().manual_seed(5), **more)

    assert draw().shape == (4, 512) and draw(draws=3).shape == (3, 4, 512)
    assert torch.equal(draw(), draw(draws=3)[0]) and torch.equal(draw(draws=2), draw(draws=3)[:2])
    assert not torch.equal(draw(draws=2)[0], draw(draws=2)[1])
    sample = noise_context(100, 512, std=0.02)
    assert sample.std().item() == pytest.approx(0.02, rel=0.05) and abs(sample.mean().item()) < 5e-4
    for wrong in ({"n_tokens": 0}, {"n_tokens": 4, "draws": 0}):
        with pytest.raises(ValueError, match="at least one token and one draw"):
            noise_context(width=8, **wrong)


def test_noise_form_equals_a_plain_reading_of_full_rows(model):
    tokenizer = open_clip.SimpleTokenizer()
    names = ["dog", "fire_truck", "great white shark"]
    noise = noise_context(4, 32, std=0.5, generator=torch.Generator().manual_seed(1), draws=2).double()
    ids = tokenizer(["X X X X " + name.replace("_", " ") for name in names])
    expected = []
    for context in noise:
        x = model.token_embedding(ids)
        x[:, 1:5] = context
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        expected.append(model.ln_final(x)[torch.arange(3), ids.argmax(1)] @ model.text_projection)
    tower = TextTower(model, tokenizer)
    features = noise_features(tower, names, noise)
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(noise_features(tower, names, noise[1]), expected[1], rtol=1e-9, atol=1e-11)
    assert not features.requires_grad
    plain = tower.encode(["dog", "fire truck", "great white shark"])
    assert F.cosine_similarity(features[0], plain).max() < 0.9999  # the noise is read
