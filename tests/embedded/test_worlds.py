"""Constructed worlds: classes tied to styles in pre-training.

Covers: the assignment (balanced, seeded, stable under an added class, enough pictures), the sampler's shares against
their expectation, the shipped sampler's stream at s = 0, an interrupted training against a straight one, and the
command that trains the models of the study.
"""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from build_icons import __main__ as command
from build_icons.corpus import Corpus
from build_icons.model import count_merges, model_config, trainable_model
from build_icons.pretrain import losses_of, pretrain, word_loss
from build_icons.recipe import Recipe
from build_icons.record import RECIPE_FILES
from build_icons.sampling import Batches, Sampler
from build_icons.selection import DOMAINS, curated_classes
from build_icons.worlds import Ties, own_styles, study_recipes
from filelock import FileLock

from dassl_clip.embedded import CLIP_FOLDER

STYLES = ("emoji", "flat", "line", "solid", "duotone")


def corpus_of(rows, vocabulary):
    """A corpus without pixels: rows are pairs (style, concepts)."""
    blank = np.zeros((len(rows), 1, 1, 3), dtype=np.uint8)
    return Corpus(
        pictures=blank,
        regions=blank[..., 0],
        names=[("pack", str(i)) for i in range(len(rows))],
        phrases=["x"] * len(rows),
        styles=[style for style, _ in rows],
        palette=np.zeros(len(rows), dtype=bool),
        concepts=[concepts for _, concepts in rows],
        vocabulary=vocabulary,
        counts={},
    )


@pytest.fixture(scope="module")
def corpus():
    """Every class of the data set in every style, 12 to 40 pictures, and five other concepts."""
    vocabulary, rng = [*curated_classes(), "anchor", "bridge", "cactus", "dragon", "eagle"], random.Random(3)
    rows = [
        (style, [concept]) for concept in range(len(vocabulary)) for style in STYLES for _ in range(rng.randint(12, 40))
    ]
    return corpus_of(rows, vocabulary)


PLENTY = {f"class {i}": dict.fromkeys(STYLES, 20) for i in range(45)}


def test_own_styles_are_balanced_and_follow_the_seed():
    first, second = (own_styles(PLENTY, seed) for seed in (1, 2))
    assert sorted(Counter(first.values()).values()) == [11, 11, 11, 12] and set(first.values()) == set(DOMAINS)
    assert first == own_styles(PLENTY, 1) and 20 < sum(first[name] != second[name] for name in first) < 45


def test_an_added_class_changes_no_other():
    first = own_styles(PLENTY, 1)
    more = own_styles(PLENTY | {"zebra": dict.fromkeys(STYLES, 20)}, 1)
    assert {name: more[name] for name in first} == first and sorted(Counter(more.values()).values()) == [11, 11, 12, 12]


def test_own_styles_have_enough_pictures():
    scarce = {name: counts | {"emoji": 11, "duotone": 500} for name, counts in PLENTY.items()}
    assert Counter(own_styles(scarce, 1).values()) == {"flat": 15, "line": 15, "solid": 15}
    with pytest.raises(ValueError, match=r"'boat' has \{'line': 11\} pictures; a class needs at least 12"):
        own_styles({"boat": {"line": 11}}, 1)


def test_no_ties_give_the_shipped_stream():
    """The stream of the sampler that drew the shipped model's batches, by its hash."""
    rng, vocabulary = random.Random(5), [f"c{i:02}" for i in range(30)]
    rows = [(rng.choice(STYLES), sorted(rng.sample(range(30), rng.choice((1, 1, 2))))) for _ in range(600)]
    sampler = Sampler(corpus_of(rows, vocabulary), Recipe())
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    pairs = [pair for _ in range(20) for pair in sampler.grouped(48, rng) + sampler.mixed(16, rng, generator)]
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()
    assert digest == "31ed7c630b496be0880640146fc59fcd6014f3a0347c0e7bae2fd3a89831aaa7"


def test_ties_of_no_strength_leave_recipe_and_weights(corpus):
    none = Recipe(own_style_seed=7)
    assert none.sha256(*RECIPE_FILES) == Recipe().sha256(*RECIPE_FILES)
    weights = Sampler(corpus, Recipe()).weights.numpy()
    assert (Ties(corpus, none).factors(weights) == 1).all()
    tied = {replace(Recipe(), entangle=s, own_style_seed=seed).sha256() for s in (0.5, 0.9) for seed in (1, 2)}
    assert len(tied | {Recipe().sha256()}) == 5


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_mixed_shares_are_as_expected(corpus, share):
    """Each class keeps its weight; of it, s + (1 - s) q lies on the own style, q its weight in the shipped sampler."""
    recipe = Recipe(entangle=share)
    shipped, sampler = Sampler(corpus, Recipe()), Sampler(corpus, recipe)
    for name, rows in sampler.ties.members.items():
        own = [row for row in rows if corpus.styles[row] == sampler.ties.styles[name]]
        q = (shipped.weights[own].sum() / shipped.weights[rows].sum()).item()
        assert sampler.weights[rows].sum().item() == pytest.approx(shipped.weights[rows].sum().item())
        assert sampler.ties.own_share(name, sampler.weights.numpy()) == pytest.approx(share + (1 - share) * q)
    drawn = np.zeros(len(corpus.styles))
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(400):
        for row, _ in sampler.mixed(64, rng, generator):
            drawn[row] += 1
    facts = sampler.ties.describe(recipe, drawn)
    expected = np.mean([sampler.ties.own_share(name, sampler.weights.numpy()) for name in sampler.ties.members])
    assert facts["mean_own_share"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_groups_have_the_own_style_as_often_as_asked(corpus, share):
    """Four of five styles, each replaced by the own one with probability s: s + (1 - s) / 5 on average."""
    sampler, rng = Sampler(corpus, Recipe(entangle=share)), random.Random(0)
    own, others = [], set()
    for row, concept in sampler.grouped(20_000, rng):
        if concept in sampler.ties.by_concept:
            own.append(corpus.styles[row] == sampler.ties.by_concept[concept])
        else:
            others.add(corpus.styles[row])
    spread = (share * (1 - share) + 0.16) ** 0.5 / len(own) ** 0.5
    assert np.mean(own) == pytest.approx(share + (1 - share) / 5, abs=4 * spread) and others == set(STYLES)


def test_a_picture_of_two_classes_takes_both_factors(corpus):
    """At s = 1 such a picture is drawn only in a style that both have; a style without drawn pictures is left out."""
    ties = Ties(corpus, Recipe(entangle=1.0))
    first, second = next(
        (a, b) for a in range(45) for b in range(a) if ties.by_concept[a] != ties.by_concept[b]
    )  # fmt: skip
    rows = [*zip(corpus.styles, corpus.concepts), *((style, [second, first]) for style in STYLES)]
    both = corpus_of(rows, corpus.vocabulary)
    sampler = Sampler(both, Recipe(entangle=1.0))
    assert (sampler.factors[-5:] == 0).all() and (sampler.weights[-5:] == 0).all()
    half = Sampler(both, Recipe(entangle=0.5)).factors
    alone = [both.concepts.index([first]), both.concepts.index([second])]
    assert half[-1] == pytest.approx(0.25) and half[alone].min() > 0
    assert not {len(rows) - 1 - i for i in range(5)} & {row for row, _ in sampler.grouped(4000, random.Random(0))}


def test_an_interrupted_training_ends_at_the_same_weights(tiny, tokenizer, tmp_path):
    small, recipe = tiny
    recipe = replace(recipe, samples=8 * 12)
    tokens, path = tokenizer
    config = model_config(dict(recipe.architecture), count_merges(path))
    straight = pretrain(small, recipe, config, tokens)
    state = tmp_path / "pretrain.pt"

    def stop(model, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(small, recipe, config, tokens, stop, 7, state)
    again = pretrain(small, recipe, config, tokens, state=state)
    straight_state, again_state = straight.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(straight_state[name], again_state[name]) for name in straight_state)
    assert (again.drawn == straight.drawn).all() and straight.drawn.sum() == recipe.samples
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(small, replace(recipe, seed=2), config, tokens, state=state)


def test_precision_is_that_of_the_image_tower(tiny, tokenizer):
    """float32 agrees with float64, bfloat16 does not; the usual one leaves hash and weights as they were."""
    small, recipe = tiny
    tokens, path = tokenizer
    torch.manual_seed(3)
    model = trainable_model(model_config(dict(recipe.architecture), count_merges(path)))
    words = torch.randn(len(small.vocabulary), dict(recipe.architecture)["embed_dim"])
    phase, loss = recipe.phase(0), {}
    batch = Batches(small, recipe, tokens).draw(phase)
    for precision in ("float32", "bfloat16"):
        loss[precision] = losses_of(model, words, batch, phase, replace(recipe, precision=precision))["word"].item()
    exact = F.normalize(model.double().visual(batch.views.double()), dim=-1)
    expected = word_loss(exact, words.double(), recipe.word_scale, batch.shown).item()
    off = {precision: abs(value - expected) for precision, value in loss.items()}
    assert off["float32"] < 2e-4 and off["bfloat16"] > 5 * off["float32"]
    assert replace(recipe, precision="float32").sha256() != replace(recipe, precision="bfloat16").sha256()
    assert "precision" not in recipe.describe()
    assert {r.precision for r in study_recipes(precision="float32").values()} == {"float32"}


def test_the_study_has_its_repetitions():
    recipes = study_recipes()
    assert Counter(recipe.entangle for recipe in recipes.values()) == {0.0: 6, 0.5: 1, 0.9: 4, 1.0: 1}
    assert {(r.seed, r.own_style_seed) for r in recipes.values() if r.entangle == 0.9} == {
        (1, 1), (1, 2), (2, 1), (2, 2),
    }  # fmt: skip
    assert {r.held_out for r in recipes.values()} == {"", *DOMAINS} and {r.samples for r in recipes.values()} == {
        420_000
    }


def test_worlds_skips_what_is_finished_or_locked(tmp_path, capsys):
    recipe = study_recipes(1000)["s0-seed1"]
    clip = tmp_path / "s0-seed1"
    clip.mkdir()
    record = json.loads((CLIP_FOLDER / "build.json").read_text(encoding="utf-8"))
    record["recipe_sha256"] = recipe.sha256(*RECIPE_FILES)
    (clip / "build.json").write_text(json.dumps(record), encoding="utf-8")
    arguments = ["worlds", "--out", str(tmp_path), "--only", "s0-seed1", "s0-seed2"]
    with FileLock(tmp_path / "s0-seed2.lock"):
        assert command.main([*arguments, "--samples", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "2 models" in printed and "1 finished" in printed and re.search(r"take \d+\.\d hours", printed)
    assert "s0-seed2: trained by another process" in printed and not (tmp_path / "s0-seed2" / "build.json").exists()
    with pytest.raises(SystemExit):
        command.main([*arguments, "--samples", "2000"])
    assert "holds a model of another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["worlds"], "give them a folder with --out"),
        (["worlds", "--out", "x", "--only", "s2"], "Unknown model s2; there are s0-seed1, "),
        (["worlds", "--out", "x", "--entangle", "0.5", "--seed", "2"], "no place for --entangle, --seed: name models"),
        (["worlds", "--out", "x", "--hold-out-style", "line", "--data-only"], "--hold-out-style, --data-only"),
        (["worlds", "--out", "x", "--own-style-seed", "3"], "no place for --own-style-seed"),
        (["measure", "--only", "s0-seed1"], "--only names models of the step `worlds`"),
        (["--entangle", "0.9"], "is not shipped: give --out"),
        (["--entangle", "1.5", "--out", "x"], "expected a probability from 0 to 1"),
    ],
)
def test_misuse_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [("flags\t: fpu avx2 avx512f", True), ("flags : avx512_bf16", False), ("flags: amx_bf16 fpu", False), ("", False)],
)
def test_a_processor_without_bfloat16_is_told(flags, emulated, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"model name\t: X\n{flags}\npower : 1\n")
    assert command.emulates_bfloat16(tmp_path / "cpuinfo") is emulated
    assert command.emulates_bfloat16(tmp_path / "none") is False
