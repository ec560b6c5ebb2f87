"""The parts of the builder.

Covers: style and name of icons by pack, hold-out of a style, names to words and concepts (with the lexicon's
exceptions and run-together names), enclosed regions, rendering (centring, white ground, determinism), the
near-duplicate check against a naive loop, restricted merges against CLIP's own, captions and which pictures they fit,
the loss against a loop, painting and placing, the short text path, pool and schedule, the recipe's hash.
"""

import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from build_icons import captions as cap
from build_icons.captions import Caption
from build_icons.corpus import enclosed_regions, words_in_names
from build_icons.fetch import Icon, archive_path, fetch
from build_icons.measure import image_features, zero_shot
from build_icons.merges import restricted_merges, write_merges
from build_icons.model import count_merges, model_config, stock_state, trainable_model
from build_icons.names import common_words, concepts_of, lexicon_concepts, segment, tokens_of
from build_icons.packs import Pack, check_style, packs_for
from build_icons.pretrain import contrastive_loss, encode_text, pretrain, word_loss
from build_icons.recipe import Phase, Recipe, learning_rate
from build_icons.record import RECIPE_FILES
from build_icons.render import svg_document
from build_icons.sampling import Batches, Captioner, Sampler, fits
from build_icons.selection import near_duplicates
from build_icons.views import Looks, paint, place
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

PACKS = {pack.pack: pack for pack in packs_for("pretrain")}
PLAIN = Looks(recolour=0, fill=0, invert=0, thicken=0, jitter=0, permute=0, tint=0, grey=0, flip=0, erase=0)


@pytest.mark.parametrize(
    "pack, icon, found",
    [
        ("ri", "home-2-line", ("line", "home-2")),
        ("ri", "home-2-fill", ("solid", "home-2")),
        ("solar", "bag-bold-duotone", ("duotone", "bag")),
        ("solar", "bag-line-duotone", ("line", "bag")),
        ("solar", "bag-broken", None),
        ("heroicons", "key-16-solid", None),
        ("material-symbols", "key-outline-rounded", None),
        ("material-symbols", "key", ("solid", "key")),
        ("icon-park", "camera", ("flat", "camera")),
        ("emojione", "camera", ("emoji", "camera")),
    ],
)
def test_style_and_bare_name(pack, icon, found):
    assert PACKS[pack].classify(icon) == found


def test_held_out_style_takes_its_other_drawings_along():
    assert PACKS["emojione-monotone"].drops("emoji") and not PACKS["emojione-monotone"].drops("flat")
    assert not any(pack.drops("") for pack in PACKS.values())
    assert set(cap.style_vocabulary("emoji")) == {"flat", "line", "solid", "duotone"}
    with pytest.raises(ValueError, match="emojis"):
        check_style("emojis")


def test_missing_npm_client_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm client is needed .*Node\.js"):
        fetch(PACKS["ri"], tmp_path)


def test_an_archive_that_npm_leaves_half_written_is_not_taken(tmp_path, monkeypatch):
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\nprintf half > {archive_path(PACKS['ri'], tmp_path).name}\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    for _ in range(2):  # the second time it would be taken for whole
        with pytest.raises(FileNotFoundError, match="did not give"):
            fetch(PACKS["ri"], tmp_path)
    assert [*archive_path(PACKS["ri"], tmp_path).parent.iterdir()] == []


def test_names_become_words():
    assert tokens_of("Alarm_clock-2-alt") == ("alarm", "clock")
    assert segment("alarmclock", {"alarm", "clock", "alarmc"}) == ("alarm", "clock")
    assert segment("xyzzy", {"alarm"}) == ("xyzzy",)
    rows = [(name, "alarm-clock") for name in ("a", "b", "c", "d", "e")] + [("fxemoji", "alarmclock")]
    assert words_in_names(rows)[-1] == ("alarm", "clock")


@pytest.mark.parametrize(
    "name, concepts",
    [
        ("mail-open", ["envelope"]),
        ("wine-glass", ["drinking glass"]),
        ("magnifying-glass", ["magnifying glass"]),
        ("dog-face", ["animal"]),
        ("grinning-face", ["smiley face"]),
        ("musical-notes", ["musical note"]),
        ("apple-music", ["musical note"]),
        ("traffic-light", []),
    ],
)
def test_lexicon(name, concepts):
    assert lexicon_concepts(tokens_of(name)) == concepts


def test_common_words_need_images_and_packs():
    many = [(f"p{i % 6}", ("anchor",)) for i in range(15)]
    few_packs = [(f"p{i % 5}", ("bridge",)) for i in range(40)]
    few_images = [(f"p{i % 6}", ("cactus",)) for i in range(14)]
    assert common_words(many + few_packs + few_images) == ["anchor"]
    assert concepts_of(("mail", "anchor", "bridge"), {"anchor", "mail"}) == ["envelope", "mail", "anchor"]


def test_enclosed_regions():
    picture = np.full((32, 32, 3), 255, dtype=np.uint8)
    picture[4:28, 4:28] = 0
    picture[6:26, 6:15] = 255
    picture[6:20, 18:26] = 255
    regions = enclosed_regions(picture)
    assert regions[0, 0] == 0 and regions[31, 31] == 0
    assert (regions[6:26, 6:15] == 1).all() and (regions[6:20, 18:26] == 2).all()
    assert (enclosed_regions(np.full((8, 8, 3), 255, dtype=np.uint8)) == 0).all()
    assert (enclosed_regions(np.zeros((8, 8, 3), dtype=np.uint8)) == 0).all()


def test_render():
    pytest.importorskip("resvg_py", reason="rendering needs resvg_py: pip install 'dassl-clip[build]'")
    from build_icons.render import render

    wide = Icon("p", "wide", '<path fill="currentColor" d="M0 0h32v16H0z"/>', (0, 0, 32, 16), False)
    pixels = render(wide, 64)
    assert (pixels[:15] == 255).all() and (pixels[49:] == 255).all() and (pixels[17:47] == 0).all()
    shifted = Icon("p", "shifted", '<rect x="-8" y="-8" width="8" height="8" fill="#ff0000"/>', (-8, -8, 16, 16), True)
    pixels = render(shifted, 64)
    assert (pixels[2:30, 2:30] == [255, 0, 0]).all() and (pixels[34:] == 255).all()
    assert (render(shifted, 64) == pixels).all()
    with pytest.raises(ValueError, match="p:broken cannot be rendered"):
        render(Icon("p", "broken", "<path", (0, 0, 16, 16), False), 64)


def test_svg_document_centres_the_box():
    icon = Icon("p", "tall", "", (0, 0, 10, 20), False)
    assert 'viewBox="-5 0 20 20"' in svg_document(icon) and 'color="#000000"' in svg_document(icon)


def test_near_duplicates_equal_a_naive_loop():
    rng = np.random.default_rng(1)
    references = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    references = np.repeat(np.repeat(references[:, ::8, ::8], 8, axis=1), 8, axis=2)
    noise = rng.normal(0, 1, (12, 64, 64, 3))
    strength = np.linspace(0, 120, 12)[:, None, None, None]
    smooth = np.repeat(np.repeat(noise[:, ::8, ::8], 8, axis=1), 8, axis=2)
    candidates = np.clip(references[np.arange(12) % 5] + strength * smooth, 0, 255).astype(np.uint8)
    candidates[11] = 255

    def thumbnail(picture):
        grey = picture.astype(np.float64).mean(axis=2)
        return np.array(
            [[grey[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(16)] for i in range(16)]
        ).ravel()

    expected = []
    for candidate in candidates:
        best = -1.0
        for reference in references:
            a, b = thumbnail(candidate), thumbnail(reference)
            if a.std() > 0:
                best = max(best, np.corrcoef(a, b)[0, 1])
        expected.append(best > 0.98)
    repeated, nearest = near_duplicates(candidates, references)
    assert repeated.tolist() == expected and 0 < sum(expected) < 11
    assert all(nearest[i] == i % 5 for i in range(11) if expected[i])


def test_restricted_merges_cut_words_as_clip_does(tmp_path):
    words = ["photo", "umbrella", "drinking", "glass", "a", "of", "itap", "don't", "café", "42"]
    merges = restricted_merges(words)
    write_merges(merges, tmp_path / "bpe.txt.gz")
    first = (tmp_path / "bpe.txt.gz").read_bytes()
    write_merges(merges, tmp_path / "bpe.txt.gz")
    assert (tmp_path / "bpe.txt.gz").read_bytes() == first and count_merges(tmp_path / "bpe.txt.gz") == len(merges)
    ours, clip = SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz")), SimpleTokenizer()
    for word in words:
        assert [ours.decoder[i] for i in ours.encode(word)] == [clip.decoder[i] for i in clip.encode(word)]
    assert ours.vocab_size == 512 + len(merges) + 2
    assert (ours.sot_token_id, ours.eot_token_id) == (ours.vocab_size - 2, ours.vocab_size - 1)
    assert ours.decode(ours.encode("zeppelin xylophone ünïcode 雪")) == "zeppelin xylophone ünïcode 雪 "


def test_captions_say_what_they_ask():
    rng, words = random.Random(0), cap.style_vocabulary()
    for _ in range(200):
        caption = cap.style_caption("key", [3], "line", rng, words)
        assert "key" in caption.text and caption.concepts == (3,) and not caption.own
        if caption.style == "line":
            assert any(word in caption.text for word in words["line"])
    held = cap.style_vocabulary("line")
    for _ in range(100):
        caption = cap.style_caption("key", [3], "line", rng, held)
        assert caption.style is None and "line" not in caption.text
    assert cap.appearance_caption("key", [3], "red", "small", rng).own
    assert "small red key" in cap.appearance_caption("key", [3], "red", "small", rng).text
    shares = [cap.plain_caption("key", [3], rng).text == "a photo of a key." for _ in range(2000)]
    assert 0.28 < sum(shares) / len(shares) < 0.38


def test_fits_equals_a_loop():
    shown = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()
    styles = ["line", "solid", "line", "line"]
    captions = [
        Caption("", (0,)), Caption("", (0,), "solid"), Caption("", (1,), "line"), Caption("", (0, 1), None, own=True),
    ]  # fmt: skip
    match = fits(captions, shown, styles)
    for i in range(4):
        for j, caption in enumerate(captions):
            fit = all(shown[i, k] for k in caption.concepts) and caption.style in (None, styles[i])
            assert match[i, j].item() == (i == j or (fit and not caption.own))


def test_contrastive_loss_equals_a_loop_and_falls():
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    match = torch.eye(5).bool()
    match[0, 3] = match[2, 4] = True
    total = 0.0
    for rows, columns, positives in ((images, texts, match), (texts, images, match.T)):
        for i in range(5):
            scores = [7 * float(rows[i] @ columns[j]) for j in range(5)]
            log_sum = math.log(sum(math.exp(s) for s in scores))
            chosen = [scores[j] - log_sum for j in range(5) if positives[i, j]]
            total -= sum(chosen) / len(chosen) / 5 / 2
    loss = contrastive_loss(images, texts, torch.tensor(7.0), match)
    assert abs(loss.item() - total) < 1e-6
    assert contrastive_loss(texts, texts, torch.tensor(7.0), torch.eye(5).bool()) < loss


def test_paint_and_place_leave_a_picture_alone_without_looks():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (4, 64, 64, 1), generator=generator, dtype=torch.uint8).expand(-1, -1, -1, 3)
    palette = torch.tensor([True, False, True, False])
    drawn, paper = paint(pictures, torch.zeros(4, 64, 64, dtype=torch.uint8), palette, [None] * 4, PLAIN, generator)
    assert torch.allclose(drawn, pictures.permute(0, 3, 1, 2) / 255, atol=1e-6) and (paper == 1).all()


def test_named_colour_paints_the_ink():
    picture = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    picture[:, 20:40, 20:40] = 0
    regions = torch.zeros(1, 64, 64, dtype=torch.uint8)
    drawn, _ = paint(picture, regions, torch.tensor([False]), ["red"], PLAIN, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn[0, :, 30, 30] * 255, torch.tensor([214.0, 40.0, 40.0]), atol=16)
    assert (drawn[0, :, 0, 0] == 1).all()


def test_filled_regions_take_one_colour():
    picture = torch.full((8, 64, 64, 3), 255, dtype=torch.uint8)
    picture[:, 16:48, 16:48] = 0
    picture[:, 20:44, 20:44] = 255
    regions = torch.zeros(8, 64, 64, dtype=torch.uint8)
    regions[:, 18:46, 18:46] = 1
    drawn, _ = paint(
        picture, regions, torch.zeros(8).bool(), [None] * 8, replace(PLAIN, fill=1.0), torch.Generator().manual_seed(0)
    )
    inner = drawn[:, :, 20:44, 20:44].flatten(2)
    assert torch.allclose(inner.amin(dim=2), inner.amax(dim=2)) and (inner[:, :, 0] < 0.95).any()
    assert (drawn[:, :, 0, 0] == 1).all()


def test_size_words_change_the_size():
    picture = torch.ones(2, 3, 64, 64)
    picture[:, :, 16:48, 16:48] = 0
    looks = replace(PLAIN, degrees=0, shift=0)
    placed = place(picture, torch.ones(2, 3), ["small", "large"], 48, looks, torch.Generator().manual_seed(0))
    small, large = ((1 - placed[i]).mean().item() for i in range(2))
    assert placed.shape == (2, 3, 48, 48) and 0.04 < small < 0.11 < 0.24 < large


def test_sampler_groups_are_one_concept_in_several_styles(tiny):
    corpus, recipe = tiny
    sampler = Sampler(corpus, recipe)
    pairs = sampler.grouped(6, random.Random(0))
    for first in (0, 3):
        group = pairs[first : first + 3]
        assert len({concept for _, concept in group}) == 1
        assert {corpus.styles[row] for row, _ in group} == {"line", "solid", "flat"}
    for row, concept in sampler.mixed(8, random.Random(0), torch.Generator().manual_seed(0)):
        assert concept in corpus.concepts[row]


def test_flat_pictures_are_drawn_more_often(tiny):
    corpus, recipe = tiny
    weights = Sampler(corpus, recipe).weights
    flat = [i for i in range(12) if corpus.styles[i] == "flat"]
    line = [i for i in range(12) if corpus.styles[i] == "line"]
    assert torch.allclose(weights[flat].mean(), 4 * weights[line].mean())


def test_short_text_path_equals_open_clip(tiny, tokenizer):
    corpus, recipe = tiny
    tokens, path = tokenizer
    config = model_config(dict(recipe.architecture), count_merges(path))
    torch.manual_seed(0)
    model = CLIP(**config["model_cfg"]).eval()
    captioner = Captioner(corpus, recipe, tokens)
    written = [Caption("a photo of a bar.", (1,)), Caption("square", (0,))]
    ids = captioner.tokens(written)
    assert ids.shape[1] < 24
    assert torch.allclose(encode_text(model, ids), model.encode_text(tokens([c.text for c in written])), atol=1e-5)


def test_written_pool_equals_the_trained_one(tiny, tokenizer):
    config = model_config(dict(tiny[1].architecture), count_merges(tokenizer[1]))
    torch.manual_seed(0)
    model = trainable_model(config).eval()
    stock = CLIP(**config["model_cfg"]).eval()
    stock.load_state_dict({name: tensor.float() for name, tensor in stock_state(model).items()})
    images = torch.randn(3, 3, 64, 64)
    assert torch.allclose(stock.encode_image(images), model.encode_image(images), atol=2e-2, rtol=1e-2)


def test_pretraining_learns(tiny, tokenizer):
    corpus, recipe = tiny
    tokens, path = tokenizer
    config = model_config(dict(recipe.architecture), count_merges(path))
    steps = []
    model = pretrain(corpus, recipe, config, tokens, lambda model, step: steps.append((step, model.training)), 20).model
    assert steps == [(20, False), (36, False)]
    images = (torch.from_numpy(corpus.pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    labels = [i % 2 for i in range(12)]
    domains = ["line", "solid", "flat", "emoji"] * 3
    table = zero_shot(
        model, tokens, image_features(model, images), labels, domains, corpus.vocabulary, ["a photo of a {}."]
    )
    assert table["a photo of a {}."]["mean"] == 100


def test_word_loss_equals_a_loop():
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(3, 6), dim=-1)
    words = torch.randn(4, 6)
    shown = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]]).bool()
    total = 0.0
    for i in range(3):
        scores = [9 * float(images[i] @ words[k] / words[k].norm()) for k in range(4)]
        log_sum = math.log(sum(math.exp(score) for score in scores))
        chosen = [scores[k] - log_sum for k in range(4) if shown[i, k]]
        total -= sum(chosen) / len(chosen) / 3
    assert word_loss(images, words, 9.0, shown).item() == pytest.approx(total, rel=1e-5)


def test_phases_follow_the_shares():
    recipe = Recipe(samples=256 * 100, warm_up=5)
    phases = [recipe.phase(step) for step in range(recipe.steps)]
    assert [step for step in range(100) if not phases[step].pairs] == list(range(33))
    assert [phase.words for phase in phases] == [1.0] * 33 + [recipe.word_weight] * 39 + [0.0] * 28
    assert [phase.grouped for phase in phases] == [0] * 72 + [192] * 28
    assert [phase.pixels for phase in phases] == [48] * 55 + [64] * 45
    assert max(phase.rate for phase in phases[:72]) == recipe.lr
    assert max(phase.rate for phase in phases[72:]) == recipe.style_lr


def test_batches_are_the_same_for_a_seed(tiny, tokenizer):
    corpus, recipe = tiny
    phase = Phase(0.0, 1.0, True, 3, 48)
    first, again = (Batches(corpus, recipe, tokenizer[0]).draw(phase) for _ in range(2))
    other = Batches(corpus, replace(recipe, seed=2), tokenizer[0]).draw(phase)
    assert torch.equal(first.views, again.views) and torch.equal(first.ids, again.ids)
    assert first.views.shape == (8, 3, 48, 48) and not torch.equal(first.views, other.views)
    assert first.match.diagonal().all() and first.shown.sum() == 8


def test_learning_rate():
    rates = [learning_rate(step, 10, 110, 2.0, 10) for step in range(10, 110)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[-1] < 1e-3 and rates[10:] == sorted(rates[10:], reverse=True)


def test_recipe_hash_follows_recipe_and_files(tmp_path):
    base = Recipe().sha256(*RECIPE_FILES)
    assert base == Recipe().sha256(*RECIPE_FILES) and len(base) == 64
    assert replace(Recipe(), seed=2).sha256(*RECIPE_FILES) != base
    assert replace(Recipe(), looks=Looks(fill=0.1)).sha256(*RECIPE_FILES) != base
    (tmp_path / "x").write_text("x")
    assert Recipe().sha256(*RECIPE_FILES, tmp_path / "x") != base


def test_pack_rows_are_complete():
    for pack in packs_for("pretrain"):
        assert (
            isinstance(pack, Pack)
            and pack.author
            and pack.spdx
            and pack.version
            and pack.npm.startswith("@iconify-json/")
        )
