"""`dassl-clip predict`: a run of every method on one's own pictures, and zero-shot with names alone.

Covered: the same answers as the run's own test, though the data are gone, for every method; batches and workers; CSV
and JSON; files that cannot be read; zero-shot against open_clip computed by hand in float64; the embedded model without
a network; runs that do not say their class names; the registry afterwards; methods that need no labels against the
Python interface, their export, thresholds, the sheet of the least certain and bad files; every refusal.
"""

import csv
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl_clip import Classifier, load
from dassl_clip.cli import predict
from dassl_clip.clip.names import embedded_folder
from dassl_clip.results.own_images import find_images
from dassl_clip.results.predictions import read_predictions

from .conftest import SETTINGS


def answers(out):
    """Path -> list of (class, share), best first."""
    found = {}
    for row in json.loads(out.read_text())["predictions"]:
        found.setdefault(row["path"], []).append((row["class"], row["share"]))
        assert row["rank"] == len(found[row["path"]])
    return found


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """What each run answers on the pictures, as written to a JSON file."""
    folder = tmp_path_factory.mktemp("predicted")
    files = {name: folder / f"{name}.json" for name in SETTINGS}
    for name, out in files.items():
        assert predict.main([str(trained / "moved" / "sketch"), "--run", str(trained / name), "--out", str(out)]) == 0
    return files


@pytest.mark.parametrize("name", SETTINGS)
def test_the_answers_of_a_run_are_those_of_its_test(trained, predicted, name):
    found, tested = answers(predicted[name]), read_predictions(trained / name)
    assert len(found) == len(tested.paths) == 30
    for path, top, shares in zip(tested.paths, tested.top, tested.shares):
        mine = found[str(path).replace(f"{trained}/data/", f"{trained}/moved/")]
        assert [name for name, _ in mine] == [tested.classnames[index] for index in top]
        np.testing.assert_allclose([share for _, share in mine], shares, atol=1e-5)
    assert json.loads(predicted[name].read_text())["method"] == name.split("+")[-1].split("-")[0]


def test_methods_give_different_shares(predicted):
    shares = {name: [s for pairs in answers(out).values() for _, s in pairs] for name, out in predicted.items()}
    for name in SETTINGS:
        if name != "ZeroshotCLIP":
            assert np.abs(np.subtract(shares[name], shares["ZeroshotCLIP"])).max() > 1e-4, name


def test_batches_and_workers_change_nothing(trained, predicted, tmp_path):
    found = []
    for number, words in enumerate(((), ("--batch-size", "7"), ("--batch-size", "4", "--workers", "2"))):
        out = tmp_path / f"{number}.json"
        assert (
            predict.main(
                [str(trained / "moved" / "sketch"), "--run", str(trained / "GOPro"), "--out", str(out), *words]
            )
            == 0
        )
        found.append(answers(out))
    for other in found[1:]:
        assert list(other) == list(found[0])
        for path, pairs in found[0].items():
            assert [name for name, _ in other[path]] == [name for name, _ in pairs]
            np.testing.assert_allclose([s for _, s in other[path]], [s for _, s in pairs], atol=1e-5)


def test_bad_files_are_named_and_left_out(trained, tmp_path, capsys):
    folder = tmp_path / "pictures"
    shutil.copytree(trained / "moved" / "sketch" / "dog", folder / "deep" / "er")
    whole = (folder / "deep" / "er" / "000.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.webp").write_text("not a picture")
    (folder / "notes.txt").write_text("no picture either, and not read")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / ".hidden.png").write_bytes(whole)
    out = tmp_path / "preds.csv"
    assert predict.main([str(folder), "--run", str(trained / "LinearProbe"), "--top", "1", "--out", str(out)]) == 1
    rows = list(csv.reader(out.open()))
    assert rows[0] == ["path", "rank", "class", "share"] and len(rows) == 11
    assert all(row[1] == "1" and 1 / 3 <= float(row[3]) <= 1 and "deep/er" in row[0] for row in rows[1:])
    told = capsys.readouterr().err
    for name in ("half.png", "empty.jpg", "text.webp", "gone.png"):
        assert f"skipped: {folder / name}: " in told
    assert "4 files could not be read" in told and "notes" not in told and "hidden" not in told


def test_bad_files_do_not_change_the_others(trained, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(trained / "moved" / "sketch", folder)
    words = ["--run", str(trained / "CoOp"), "--batch-size", "4", "--out", str(tmp_path / "preds.json")]
    assert predict.main([str(folder), *words]) == 0
    before = answers(tmp_path / "preds.json")
    bad = folder / "dog" / "003.png"
    bad.write_bytes(b"")
    assert predict.main([str(folder), *words]) == 1
    after = answers(tmp_path / "preds.json")
    assert before.keys() - after.keys() == {str(bad)}
    for path, pairs in after.items():
        np.testing.assert_allclose([s for _, s in pairs], [s for _, s in before[path]], atol=1e-5)
    assert json.loads((tmp_path / "preds.json").read_text())["skipped"] == [{"path": str(bad), "reason": "is empty"}]


def test_names_alone_are_clip_zero_shot(trained, tiny_clip, tmp_path):
    names, out = ["dog", "fire_truck", "a very odd house"], tmp_path / "preds.json"
    (tmp_path / "names.txt").write_text("\ufeffdog\n\nfire_truck\n a very odd house \n")
    words = ["--names", str(tmp_path / "names.txt"), "--backbone", f"local-dir:{tiny_clip}", "--out", str(out)]
    assert predict.main([str(trained / "moved" / "sketch"), *words, "--templates", "a sketch of a {}."]) == 0
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    model = model.double().eval()
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-B-32")([f"a sketch of a {name.replace('_', ' ')}." for name in names])
        text = F.normalize(model.encode_text(tokens), dim=-1)
        found = answers(out)
        assert len(found) == 30
        for path, pairs in found.items():
            image = preprocess(Image.open(path).convert("RGB"))[None].double()
            scores = model.logit_scale.exp() * F.normalize(model.encode_image(image), dim=-1) @ text.T
            shares = dict(zip(names, scores.softmax(-1)[0].tolist()))
            assert [name for name, _ in pairs] == sorted(names, key=lambda name: -shares[name])
            for name, share in pairs:
                assert share == pytest.approx(shares[name], abs=1e-5)


def test_the_embedded_model_needs_no_network(capsys, monkeypatch):
    from dassl_clip.clip.names import embedded_folder

    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    stars = sorted((embedded_folder().parent / "icons" / "line" / "star").glob("*.png"))[:3]
    assert stars
    assert predict.main([*map(str, stars), "--names", "star,truck,envelope", "--top", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ".png" in line]
    assert len(lines) == len(stars) and all("star " in line.split(".png")[1] for line in lines)


def test_class_names_come_from_the_checkpoint_where_the_record_has_none(trained, tmp_path, capsys):
    for name in ("CoOp", "ZeroshotCLIP"):
        shutil.copytree(trained / name, tmp_path / name)
        (tmp_path / name / "predictions.npz").unlink()
        record = json.loads((tmp_path / name / "record.json").read_text())
        del record["classnames"]
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    picture = str(trained / "moved" / "sketch" / "dog" / "000.png")
    assert predict.main([picture, "--run", str(tmp_path / "CoOp")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("dog", "fire_truck", "house"))
    assert predict.main([picture, "--run", str(tmp_path / "ZeroshotCLIP")]) == 2
    assert "does not say its class names" in capsys.readouterr().err


def test_the_registry_is_as_before(trained):
    from dassl.data.datasets import DATASET_REGISTRY

    before = DATASET_REGISTRY.get("FolderDomains")
    assert predict.main([str(trained / "moved" / "sketch" / "dog"), "--run", str(trained / "InMaP")]) == 0
    assert DATASET_REGISTRY.get("FolderDomains") is before


def test_pictures_are_found_once_and_in_order(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "a/.x/0.png", "__MACOSX/0.png", "readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path / "b"), str(tmp_path), str(tmp_path / "readme.md")])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/2.png", "a/1.JPG", "readme.md"]


def test_a_name_that_is_no_utf8_is_shown(tmp_path, capsys):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert (
        predict.main(
            [str(tmp_path), "--names", "cat,dog", "--backbone", "IconsCLIP", "--out", str(tmp_path / "preds.csv")]
        )
        == 0
    )
    assert "caf\ufffd.png" in (tmp_path / "preds.csv").read_text()


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A flat folder of icons without labels, and a file of names."""
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "photos").mkdir()
    for name in ("key", "star", "fish"):
        for path in sorted((embedded_folder().parent / "icons" / "flat" / name).glob("*.png"))[:6]:
            shutil.copy(path, root / "photos" / f"{len(path.name) % 10}-{path.name}")
    (root / "names.txt").write_text("key\nstar\nfish\nhouse\n")
    return root


TOGETHER = ("TransCLIP", "StatA", "ZLaP", "TDA", "OnZeta", "IOTA")  # keep nothing that could be exported
LABEL_FREE = ("ZeroshotCLIP", "CLAP", "InMaP", *TOGETHER)


@pytest.mark.parametrize("method", LABEL_FREE)
def test_a_method_on_unlabelled_images_is_the_classifier(unlabelled, tmp_path, method):
    """One command gives the digits of the Python interface; what it exports is loaded there, and by `--run`."""
    out, head = tmp_path / "preds.json", tmp_path / "head.safetensors"
    pairs = ["TRAINER.CLAP.MAX_STEPS", "20"] if method == "CLAP" else []
    words = ["--names", str(unlabelled / "names.txt"), "--method", method.lower(), "--backbone", "IconsCLIP"]
    words += ["--out", str(out), *([] if method in TOGETHER else ["--export", str(head)]), *pairs]
    assert predict.main([str(unlabelled / "photos"), *words]) == 0
    files = sorted((unlabelled / "photos").iterdir())
    settings = {"max_steps": 20} if pairs else {}
    clf = Classifier(method, str(unlabelled / "names.txt"), backbone="IconsCLIP", **settings).fit(files)
    found, expected = answers(out), clf.predict_proba(files)
    assert list(found) == list(map(str, files))
    for path, shares in zip(files, expected):
        assert dict(found[str(path)]) == dict(zip(clf.classes_, shares.tolist()))
    facts = json.loads(out.read_text())
    assert facts["method"] == method and facts["weights_hash"] == clf.record_["backbone"]["weights_hash"]
    if method in TOGETHER:
        return
    np.testing.assert_array_equal(load(head).predict_proba(files), expected)
    again = tmp_path / "again.json"
    assert predict.main([str(unlabelled / "photos"), "--run", str(head), "--out", str(again)]) == 0
    for path, pairs in answers(again).items():
        np.testing.assert_allclose([share for _, share in pairs], [share for _, share in found[path]], atol=1e-5)


def test_settings_templates_and_thresholds(unlabelled, tmp_path, capsys):
    photos, base = (
        str(unlabelled / "photos"),
        ["--names", "key,star,fish", "--method", "InMaP", "--backbone", "IconsCLIP"],
    )
    outs = [tmp_path / f"{number}.csv" for number in range(3)]
    assert predict.main([photos, *base, "--out", str(outs[0])]) == 0
    assert predict.main([photos, *base, "--out", str(outs[1]), "TRAINER.INMAP.MARGINAL", "zero-shot"]) == 0
    assert predict.main([photos, *base, "--out", str(outs[2]), "--templates", "a drawing of a {}."]) == 0
    texts = [out.read_text() for out in outs]
    assert len(set(texts)) == 3
    facts = json.loads((tmp_path / "0.facts.json").read_text())
    assert facts["backbone"] == "IconsCLIP" and len(facts["weights_hash"]) == 64 and facts["skipped"] == []
    rows = list(csv.DictReader(texts[0].splitlines()))
    best = sorted(float(row["share"]) for row in rows if row["rank"] == "1")
    limit = (best[3] + best[4]) / 2
    capsys.readouterr()
    assert predict.main([photos, *base, "--out", str(outs[0]), "--reject-below", str(limit)]) == 0
    assert "4 of 18 images are (rejected)" in capsys.readouterr().out
    rejected = [row for row in csv.DictReader(outs[0].open()) if row["class"] == "(rejected)"]
    assert [float(row["share"]) for row in sorted(rejected, key=lambda row: row["share"])] == best[:4]
    assert all(row["rank"] == "1" for row in rejected) and len(list(csv.DictReader(outs[0].open()))) == 4 + 14 * 3
    assert json.loads((tmp_path / "0.facts.json").read_text())["rejected"] == 4


def test_the_sheet_shows_the_least_certain(unlabelled, tmp_path, capsys):
    from dassl_clip.cli.data_sheet import MARGIN, TILE, thumbnail

    sheet, out = tmp_path / "sheet.png", tmp_path / "preds.csv"
    words = ["--names", "key,star,fish", "--backbone", "IconsCLIP", "--out", str(out), "--sheet", str(sheet)]
    assert predict.main([str(unlabelled / "photos"), *words]) == 0
    assert "the 18 least certain images" in capsys.readouterr().out
    rows = [row for row in csv.DictReader(out.open()) if row["rank"] == "1"]
    least = min(rows, key=lambda row: float(row["share"]))
    with Image.open(sheet) as drawn:
        assert drawn.width == MARGIN + 6 * (TILE + MARGIN)
        first = np.asarray(drawn)[MARGIN + 15 : MARGIN + 15 + TILE, MARGIN : MARGIN + TILE]
    np.testing.assert_array_equal(first, np.asarray(thumbnail(least["path"])))


def test_a_method_leaves_bad_files_out(unlabelled, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(unlabelled / "photos", folder)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    words = [
        "--names",
        "key,star,fish",
        "--method",
        "InMaP",
        "--backbone",
        "IconsCLIP",
        "--out",
        str(tmp_path / "p.json"),
    ]
    assert predict.main([str(folder), *words]) == 1
    reasons = {one["path"]: one["reason"] for one in json.loads((tmp_path / "p.json").read_text())["skipped"]}
    assert {Path(path).name for path in reasons} == {"empty.png", "text.png", "gone.png"}
    assert reasons[str(folder / "empty.png")] == "is empty"
    whole = tmp_path / "whole.json"
    assert predict.main([str(unlabelled / "photos"), *words[:-1], str(whole)]) == 0
    expected = {Path(path).name: pairs for path, pairs in answers(whole).items()}
    for path, pairs in answers(tmp_path / "p.json").items():
        np.testing.assert_allclose([s for _, s in pairs], [s for _, s in expected[Path(path).name]], atol=1e-5)
    assert "3 files could not be read" in capsys.readouterr().err


REFUSALS = {
    "no such folder": (["{mine}x", "--names", "a,b"], "there is no file or folder"),
    "no images": (["{empty}", "--names", "a,b"], "there are no images in"),
    "one name": (["{mine}", "--names", "dog", "--backbone", "IconsCLIP"], "at least two classes"),
    "a file that is not there": (["{mine}", "--names", "names.txt"], "there is no file names.txt"),
    "one name twice": (["{mine}", "--names", "dog,cat,dog"], "'dog' 2 times"),
    "run and backbone": (["{mine}", "--run", "{run}", "--backbone", "RN50"], "--backbone go with --names"),
    "no source": (["{mine}"], "one of the arguments --run --names is required"),
    "no run": (["{mine}", "--run", "{world}"], "finished runs below it"),
    "no run folder": (["{mine}", "--run", "{world}/x"], "there is no folder"),
    "ending": (["{mine}", "--names", "a,b", "--out", "preds.txt"], "the ending says the format"),
    "top": (["{mine}", "--names", "a,b", "--top", "0"], "--top 0: at least 1"),
    "backbone": (["{mine}", "--names", "a,b", "--backbone", "IconCLIP"], "Did you mean 'IconsCLIP'"),
    "templates": (
        ["{mine}", "--names", "a,b", "--templates", "no place", "--backbone", "IconsCLIP"],
        "unknown templates",
    ),
    "own photos without a backbone": (["{mine}", "--names", "a,b"], "--backbone IconsCLIP is the small one"),
    "labels": (["{mine}", "--names", "a,b", "--method", "CoOp"], "CoOp trains on labels, and these images have none"),
    "no method": (["{mine}", "--names", "a,b", "--method", "InMap2"], "Did you mean 'InMaP'"),
    "run and method": (["{mine}", "--run", "{run}", "--method", "InMaP"], "--method go with --names"),
    "key without method": (["{mine}", "--names", "a,b", "SEED", "2"], "SEED (KEY VALUE) goes with --method"),
    "export without method": (["{mine}", "--names", "a,b", "--export", "a.safetensors"], "--export goes with --method"),
    "export's ending": (["{mine}", "--names", "a,b", "--method", "InMaP", "--export", "a.pt"], "end in .safetensors"),
    "nothing to export": (
        ["{mine}", "--names", "a,b", "--method", "ZLaP", "--export", "a.safetensors", "--backbone", "IconsCLIP"],
        "ZLaP scores images together and keeps nothing",
    ),
    "sheet among the images": (["{mine}", "--names", "a,b", "--sheet", "{mine}/s.png"], "lies among the images of"),
    "sheet over an image": (
        ["{bad}", "--names", "a,b", "--sheet", "{bad}"],
        "is there already, among the images, and would be lost",
    ),
    "answers over the names": (["{mine}", "--names", "{names}", "--out", "{names}"], "is the file of the class names"),
    "sheet's ending": (["{mine}", "--names", "a,b", "--sheet", "a.jpg"], "end in .png"),
    "threshold": (["{mine}", "--names", "a,b", "--reject-below", "50"], "a share from 0 to 1"),
    "key": (
        ["{mine}", "--names", "a,b", "--method", "InMaP", "--backbone", "IconsCLIP", "TRAINER.INMAP.MARGINL", "auto"],
        "Did you mean 'TRAINER.INMAP.MARGINAL'",
    ),
    "only bad": (["{bad}", "--names", "a,b", "--backbone", "IconsCLIP"], "none of the 1 files can be read"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_sentences(trained, tmp_path, capsys, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").touch()
    places = {"mine": trained / "moved" / "sketch", "world": trained, "run": trained / "CoOp"}
    places |= {"empty": tmp_path / "empty", "bad": tmp_path / "bad.png", "names": tmp_path / "names.csv"}
    (tmp_path / "names.csv").write_text("a\nb\n")
    words, expected = REFUSALS[case]
    try:
        code = predict.main([word.format(**places) for word in words])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2 and expected in told and told.startswith("error: ") and len(told.splitlines()) == 1


def test_other_weights_are_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "ZeroshotCLIP", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    record["backbone"]["weights_hash"] = "0" * 64
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert predict.main([str(trained / "moved" / "sketch"), "--run", str(tmp_path / "run")]) == 2
    assert "other weights" in capsys.readouterr().err
