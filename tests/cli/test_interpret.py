"""`dassl-clip interpret`: the words nearest to learned contexts.

Covers: distances and order against plain formulas in float64 for both metrics, the context of CoOp, class-specific
contexts and GOPro's, from a folder and from an exported file; words as the tokenizer itself writes them and whether
they end; a start that was not trained reads as its own words; the caveat; table, CSV and JSON; every refusal.
"""

import csv
import json

import open_clip
import pytest

from dassl_clip.cli import export, interpret, train
from dassl_clip.engine.checkpoint_files import load_checkpoint

from .conftest import run_words


@pytest.fixture(scope="module")
def started(tmp_path_factory, tiny_clip, domain_tree):
    """Runs whose contexts stay at the words that they start from."""
    root = tmp_path_factory.mktemp("started")
    for name, words in {"CoOp": "a photo of a", "GOPro": "qwertzy_tiny"}.items():
        pairs = [f"TRAINER.{name.upper()}.CTX_INIT", words, "OPTIM.LR", "0.0"]
        assert train.main(run_words(name, root / name, domain_tree, tiny_clip, *pairs)) == 0
    return root


@pytest.fixture(scope="module")
def vocabulary(tiny_clip):
    """Embeddings `[W, D]` of all tokens, in open_clip's hands, as float64 rows."""
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    return model.token_embedding.weight.detach().double()


def learned(folder, part, key):
    return load_checkpoint(folder / part / "model.pth.tar-1")["state_dict"][key].double()


def naive(vector, rows, metric):
    """Numbers and distances of all rows, nearest first."""
    if metric == "euclidean":
        distances = (rows - vector).square().sum(1).sqrt().tolist()
    else:
        distances = (1 - (rows * vector).sum(1) / (rows.square().sum(1) * vector.square().sum()).sqrt()).tolist()
    order = sorted(range(len(rows)), key=distances.__getitem__)
    return [(number, distances[number]) for number in order]


def look_up(capsys, *words):
    assert interpret.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def as_json(tmp_path, *words):
    out = tmp_path / "words.json"
    assert interpret.main([*(str(word) for word in words), "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("metric", interpret.METRICS)
def test_neighbours_are_those_of_the_plain_formulas(trained, vocabulary, tmp_path, metric):
    content = as_json(tmp_path, trained / "CoOp", "--top", "4", "--metric", metric)
    context, tokenizer = learned(trained / "CoOp", "prompt_learner", "ctx"), open_clip.SimpleTokenizer()
    assert len(content["words"]) == 4 * 4 and content["metric"] == metric
    for position, vector in enumerate(context, start=1):
        mine = [word for word in content["words"] if word["position"] == position]
        expected = naive(vector, vocabulary, metric)[:4]
        assert [word["rank"] for word in mine] == [1, 2, 3, 4]
        assert [word["token"] for word in mine] == [number for number, _ in expected]
        assert [word["distance"] for word in mine] == pytest.approx([value for _, value in expected], abs=2e-5)
        for word in mine:
            assert word["word"] == (tokenizer.decode([word["token"]]).strip() or " ")
            ends = tokenizer.decoder[word["token"]]
            assert word["whole_word"] == (ends.endswith("</w>") or ends.startswith("<"))
    expected = [naive(row, vocabulary[::64], metric)[1][1] for row in vocabulary[:128:64]]
    assert 0 < content["between_words"] < 2 * max(expected)


def test_an_untrained_start_reads_as_its_words(started, capsys):
    out = look_up(capsys, started / "CoOp", "--top", "2")
    assert "the nearest ones in a row read 'a photo of a'" in out
    lines = [line for line in out.splitlines() if line[:2] in ("1 ", "2 ", "3 ", "4 ")]
    assert [line.split()[1:3] for line in lines] == [[word, "0.000,"] for word in ("a", "photo", "of", "a")]
    assert "for scale: a word's own nearest other word is" in out
    assert out.splitlines()[-1].startswith("weak evidence: ") and "parts of words" in out


def test_contexts_a_class(trained, vocabulary, tmp_path, capsys):
    context = learned(trained / "CoOp-CSC", "prompt_learner", "ctx")
    content = as_json(tmp_path, trained / "CoOp-CSC", "--top", "1")
    first = {(word["class"], word["position"]): word["token"] for word in content["words"]}
    assert first == {
        (name, position): naive(vector, vocabulary, "euclidean")[0][0]
        for name, rows in zip(("dog", "fire_truck", "house"), context)
        for position, vector in enumerate(rows, start=1)
    }
    out = look_up(capsys, trained / "CoOp-CSC", "--classes", "Fire truck", "--top", "1")
    assert "fire_truck: the nearest ones" in out and "dog:" not in out and "1 of 3 classes" in out


def test_gopro_and_files(started, tmp_path, capsys):
    tokenizer = open_clip.SimpleTokenizer()
    parts = [tokenizer.decoder[token] for token in tokenizer.encode("qwertzy tiny")]
    assert export.main([str(started / "GOPro"), "--out", str(tmp_path / "head.safetensors")]) == 0
    capsys.readouterr()
    out = look_up(capsys, started / "GOPro", "--top", "3")
    assert "before each image adds its own shift" in out and "read 'qwertzy tiny'" in out
    shown = [line.split()[1] for line in out.splitlines() if line[:1].isdigit()]
    assert shown == [part.removesuffix("</w>") + "-" * (not part.endswith("</w>")) for part in parts]
    assert len(parts) > 2
    first, second = (as_json(tmp_path, source) for source in (started / "GOPro", tmp_path / "head.safetensors"))
    assert first["words"] == second["words"] and first["shifted_by_images"] is True


def test_a_csv_file(trained, tmp_path, capsys):
    path = tmp_path / "words.csv"
    assert interpret.main([str(trained / "CoOp"), "--top", "2", "--out", str(path)]) == 0
    assert "8 words: " in (out := capsys.readouterr().out) and "weak evidence" in out
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["class", "position", "rank", "word", "token", "distance", "whole_word"]
    assert [(row["position"], row["rank"]) for row in rows] == [(str(p), str(r)) for p in (1, 2, 3, 4) for r in (1, 2)]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("LinearProbe",), "LinearProbe learns no context"),
        (("CoOp", "--top", "0"), "--top 0: at least 1 is needed"),
        (("CoOp", "--out", "words.txt"), ".csv and .json are known"),
        (("CoOp-CSC", "--classes", "hose"), "has no class 'hose'. Did you mean 'house'?"),
        (("CoOp", "--classes", "dog"), "one context for all classes"),
        (("nothing",), "there is no folder"),
    ],
)
def test_refusals(trained, capsys, words, sentence):
    assert interpret.main([str(trained / words[0]), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
