"""Tests of styles: what the record of a run holds, against counting by hand on open_clip's own features.

Covers: accuracy on images in the class's own style and in others, where errors fall and would fall by chance, the
projection out of either tower, prompts with right, wrong and own style words, balanced scores against plain Sinkhorn,
which images are read, what is refused, and that the keys of styles leave the identity of older runs as it was.
"""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.styles import estimate_own_styles
from dassl_clip.engine.config import default_config
from dassl_clip.engine.fingerprint import identity
from dassl_clip.engine.style_tests import balanced

WORDS = ("art", "photo", "sketch")
NAMES = ("dog", "fire truck", "house")
OWN = {"dog": "sketch", "fire truck": "photo", "house": "sketch"}


@pytest.fixture
def styles(run, tmp_path):
    """`styles(*pairs, source=...)` runs the tests on the sketches; gives the record and the output."""
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"own_styles": OWN}))

    def go(*pairs, trainer="ZeroshotCLIP", **options):
        keys = ("TRAINER.ZEROSHOTCLIP.EVALUATE", "('styles',)") if trainer == "ZeroshotCLIP" else ()
        _, record, output = run(trainer, *keys, "DATASET.OWN_STYLES", file, *pairs, **options)
        return record, output

    return go


def accuracy(features, prompts, labels, chosen=None):
    best = (features @ prompts.T).argmax(1)
    hits = (best == labels) if chosen is None else (best == labels)[chosen]
    return 100 * hits.float().mean().item()


def unit(x):
    return F.normalize(x, dim=-1)


def test_metrics_are_those_counted_by_hand(styles, sketch, plain):
    record, _ = styles()
    metrics = {name: values["accuracy"] for name, values in record["metrics"].items()}
    _, labels, _, features = sketch
    features, prompts = unit(features), unit(plain.texts([f"a photo of a {name}." for name in NAMES]))
    styled = torch.stack([unit(plain.texts([f"a {name} in {word} style." for name in NAMES])) for word in WORDS])
    is_own = torch.tensor([OWN[name] == "sketch" for name in NAMES])[labels]
    best = (features @ prompts.T).argmax(1)
    wrong = [int(b) for b, truth, own in zip(best, labels, is_own) if b != truth and not own]
    directions = (styled - prompts).mean(1).double()

    def rest(x):
        return x - (directions.T @ torch.linalg.lstsq(directions.T, x.double().T).solution).T.float()

    expected = {
        "zero-shot": accuracy(features, prompts, labels),
        "images in the class's own style": accuracy(features, prompts, labels, is_own),
        "images in other styles": accuracy(features, prompts, labels, ~is_own),
        "errors on other styles that fall on classes of that style": 100
        * sum(OWN[NAMES[b]] == "sketch" for b in wrong)
        / len(wrong),
        "the same by chance": 100 * 2 / 2,
        "style words projected out of the texts": accuracy(features, unit(rest(prompts)), labels),
        "style words projected out of the images": accuracy(rest(features), prompts, labels),
        "prompt with the style word of the images": accuracy(features, styled[2], labels),
        "prompt with a wrong style word": sum(accuracy(features, styled[i], labels) for i in (0, 1)) / 2,
        "prompt with the class's own style word": accuracy(
            features, torch.stack([styled[WORDS.index(OWN[name]), i] for i, name in enumerate(NAMES)]), labels
        ),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-4), name
    assert record["metrics"]["zero-shot"]["per_class_accuracy"] == [
        pytest.approx(accuracy(features, prompts, labels, labels == c)) for c in range(3)
    ]
    added = unit((styled.double() - styled.double().mean(0)).mean(1))
    nearest = ((prompts - prompts.mean(0)).double() @ added.T).argmax(1).tolist()
    read_off = sum(OWN[name] == WORDS[number] for name, number in zip(NAMES, nearest))
    assert metrics["classes whose own style can be read off their names' features"] == pytest.approx(100 * read_off / 3)
    assert {"C", "CP", "PC", "scores balanced over classes"} <= set(metrics)


def test_balanced_scores_give_every_class_its_share():
    """Against plain iterations on the assignment matrix in float64."""
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) + torch.tensor([4.0, 0, 0, 0, -2])
    shares = balanced(logits).softmax(dim=1)
    assert torch.allclose(shares.sum(0), torch.full((5,), 8.0), atol=1e-3)
    matrix = logits.double().exp()
    for _ in range(500):
        matrix = matrix / matrix.sum(0, keepdim=True) * 8
        matrix = matrix / matrix.sum(1, keepdim=True)
    assert torch.allclose(shares.double(), matrix, atol=1e-3)


def test_images_that_are_not_tested_are_read_where_there_are_such(styles):
    across, _ = styles(name="across")
    assert across["metrics"]["zero-shot"]["total"] == across["metrics"]["test"]["total"] == 30
    assert any("the tested images" in note for note in across["reading_notes"])
    inside, _ = styles("DATASET.NUM_SHOTS", -1, name="inside", source="sketch")
    tested, read = inside["metrics"]["test"]["total"], inside["metrics"]["zero-shot"]["total"]
    assert tested + read == 30 and read > 0
    assert any("training and validation images" in note for note in inside["reading_notes"])


def test_own_styles_are_estimated_where_nothing_says_them(run, plain):
    """Each name's plain feature beside what each style word adds, computed again in float64."""
    _, record, _ = run("ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.EVALUATE", "('styles',)")
    prompts = unit(plain.texts([f"a photo of a {name}." for name in NAMES])).double()
    styled = torch.stack([unit(plain.texts([f"a {name} in {word} style." for name in NAMES])) for word in WORDS])
    added = (styled.double() - styled.double().mean(0)).mean(1)
    of_sketch = sum(
        max(WORDS, key=lambda w: float((name - prompts.mean(0)) @ unit(added)[WORDS.index(w)])) == "sketch"
        for name in prompts
    )
    assert "styles: the own style of each class is estimated from the texts" in record["reading_notes"]
    own, other = (record["metrics"].get(f"images in {which}", {"total": 0}) for which in
                  ("the class's own style", "other styles"))  # fmt: skip
    assert (own["total"], other["total"]) == (10 * of_sketch, 30 - 10 * of_sketch)


def test_estimate_finds_names_that_lean_to_a_style():
    draw = torch.Generator().manual_seed(0)
    styles, names = torch.randn(4, 64, generator=draw), torch.randn(40, 64, generator=draw)
    own = torch.arange(40) % 4
    plain = unit(names + 2 * styles[own])
    assert torch.equal(estimate_own_styles(unit(names + 2 * styles[own] + 3 * styles[:, None]), plain), own)


def test_own_styles_beside_the_weights_are_taken(run, tiny_clip, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in tiny_clip.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    keys = ("TRAINER.ZEROSHOTCLIP.EVALUATE", "('styles',)", "MODEL.BACKBONE.NAME", f"local-dir:{folder}")
    for styles, known in (({"cat": "art"}, False), (OWN, True)):  # of other classes, and of these
        (folder / "own_styles.json").write_text(json.dumps({"own_styles": styles}))
        _, record, _ = run("ZeroshotCLIP", *keys, name=str(known))
        note = f"styles: the own style of each class is {'known' if known else 'estimated from the texts'}"
        assert note in record["reading_notes"]


@pytest.mark.parametrize(
    "pairs, options, message",
    [
        (("DATASET.STYLES", "['pen']"), {}, "for each domain, in their order, a style word of its own"),
        (("DATASET.STYLES", "['pen', 'ink', 'pen']"), {}, "a style word of its own"),
        ((), {"target": "art sketch", "source": "photo"}, "need one tested domain"),
        (("DATASET.STYLE_TEMPLATE", "a {}."), {}, "DATASET.STYLE_TEMPLATE"),
        (("DATASET.OWN_STYLES", "no.json"), {}, "DATASET.OWN_STYLES: there is no file no.json"),
    ],
)
def test_misuse_is_one_line(styles, pairs, options, message):
    with pytest.raises(AssertionError, match=message):
        styles(*pairs, **options)


@pytest.mark.parametrize(
    "name", ["CLIPAdapter", "KgCoOp", "LinearProbe", "LinearProbeP2", "ProLIP", "TipAdapter", "ERM"]
)
def test_templates_with_own_styles_reach_every_method(styles, name):
    node = f"TRAINER.{name.upper()}"
    short = ("OPTIM.MAX_EPOCH", 1, f"{node}.STEPS", 1) if name == "ERM" else ("OPTIM.MAX_EPOCH", 1)
    record, _ = styles(f"{node}.TEMPLATES", "a {own} drawing of a {}.", *short, trainer=name)
    assert "a {own} drawing of a {}." in json.dumps(record["prompt"])


def test_one_domain_has_no_other_style(styles, domain_tree, tmp_path):
    shutil.copytree(domain_tree / "art", tmp_path / "one" / "art")
    with pytest.raises(AssertionError, match="need one tested domain of two or more"):
        styles(root=tmp_path / "one", source="art", target="art")


def test_own_styles_without_a_word_are_refused(styles, tmp_path):
    (tmp_path / "pen.json").write_text(json.dumps({"own_styles": OWN | {"dog": "pen"}}))
    with pytest.raises(AssertionError, match="name pen, which is no style word here; the words are art, photo, sketch"):
        styles("DATASET.OWN_STYLES", tmp_path / "pen.json")


def test_style_keys_count_only_where_they_are_set():
    config = default_config()
    config.TRAINER.NAME = "ZeroshotCLIP"
    before = identity(config)
    assert not any("STYLE" in key for key in before)
    config.DATASET.STYLES = ("pen",)
    config.DATASET.OWN_STYLES = "own.json"
    assert {key: value for key, value in identity(config).items() if key not in before} == {
        "DATASET.STYLES": ["pen"], "DATASET.OWN_STYLES": "own.json",
    }  # fmt: skip
