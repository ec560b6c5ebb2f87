"""`dassl-clip export`: one file of a finished run, and all that takes such a file.

Covers: for every method the learned parts, the metadata and whether there is a plain classifier; that classifier
against the test's own predictions, and in the hands of open_clip alone, as the lines of docs/export.md have it, with
the accuracy of the record on the embedded data; the same answers of `predict` from folder and file; files unpacked to
run folders that `train.py --eval-only` and InMaP take; a refined run that carries its base; half precision (size, what
is told of it, answers); parts that no score needs are left out, and the file loads without them; names of files; every
refusal (torn, not an export, missing metadata, other version, changed tensors, other learned parts, other backbone).
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dassl_clip.cli import export, predict, train
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.weights import hash_state
from dassl_clip.engine.checkpoint_files import load_checkpoint
from dassl_clip.engine.export import Storage, load_export
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import read_record

from .conftest import SETTINGS, run_words

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
LINEAR = {"ZeroshotCLIP", "CoOp", "CoOp-CSC", "LinearProbe", "InMaP"}


@pytest.fixture(scope="module")
def world(trained):
    """A file of every run beside its folder."""
    for name in SETTINGS:
        assert export.main([str(trained / name), "--out", str(trained / f"{name}.safetensors")]) == 0, name
    return trained


def metadata(path):
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def rewritten(source, target, tensors=None, **facts):
    """A copy of a file with other tensors or metadata; a value of None leaves a key out."""
    kept = {**metadata(source), **facts}
    texts = {key: json.dumps(value) for key, value in kept.items() if value is not None}
    save_file(tensors or load_file(source), target, texts)
    return target


def refusal(capsys, *words):
    assert export.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_holds_what_the_run_learned(world, name):
    path, record = world / f"{name}.safetensors", read_record(world / name)
    tensors, facts = load_file(path), metadata(path)
    assert facts["record"] == record and facts["sha256"] == hash_state(tensors)
    assert facts["classnames"] == ["dog", "fire_truck", "house"]
    assert facts["backbone"] == record["backbone"]
    parts = {}
    for key, value in tensors.items():
        if key.startswith("learned."):
            parts.setdefault(key.split(".")[1], {})[key.split(".", 2)[2]] = value
    assert parts.keys() == record["learned"].keys()
    for part, state in parts.items():
        best = world / name / part / "model-best.pth.tar"
        saved = load_checkpoint(best if best.is_file() else world / name / part / "model.pth.tar-1")["state_dict"]
        unread = set(facts["storage"]["left_out"].get(part, ()))
        assert unread == {key for key in saved if name == "GOPro" and key.startswith("image_projector.")}
        assert state.keys() == saved.keys() - unread and all(torch.equal(state[key], saved[key]) for key in state)
    written = yaml.safe_load((world / name / "config.yaml").read_text())
    assert facts["config"]["TRAINER"].keys() == written["TRAINER"].keys()
    assert facts["config"]["OUTPUT_DIR"] == facts["config"]["DATASET"]["ROOT"] == ""
    assert ("base" in facts) == (name == "CLAP+InMaP")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plain_classifier_where_scores_are_linear(world, tiny_clip, name):
    tensors, facts = load_file(world / f"{name}.safetensors"), metadata(world / f"{name}.safetensors")
    assert ("classifier.weight" in tensors) == (name in LINEAR)
    if name not in LINEAR:
        assert facts["classifier"].startswith("none: ") and ("depend on that image" in facts["classifier"]) == (
            name.startswith("GOPro")
        )
        return
    weight, scale = tensors["classifier.weight"], tensors["classifier.logit_scale"]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    assert weight.shape == (3, 16) and scale.item() == pytest.approx(model.logit_scale.exp().item())
    tested = read_predictions(world / name)
    paths = [str(path).replace(f"{world}/data", f"{world}/moved") for path in tested.paths]
    with torch.no_grad():
        features = model.eval().encode_image(torch.stack([preprocess(Image.open(path)) for path in paths]))
    scores = scale * F.normalize(features, dim=-1) @ weight.T
    assert torch.equal(scores.argmax(1), torch.as_tensor(tested.top[:, 0]))
    torch.testing.assert_close(
        scores.softmax(1).gather(1, torch.as_tensor(tested.top)), torch.as_tensor(tested.shares), atol=1e-5, rtol=0
    )


def test_the_lines_of_the_page_have_the_accuracy_of_the_record(tmp_path, monkeypatch, capsys):
    """With open_clip alone, on the embedded data and model."""
    words = ["--trainer", "CoOp", "--config-file", "configs/trainers/CoOp/icons.yaml", "--seed", "1"]
    words += ["--dataset-config-file", "configs/datasets/icons.yaml", "--source-domains", "line"]
    words += ["--target-domains", "line", "--output-dir", str(tmp_path / "run"), "DATASET.NUM_SHOTS", "2"]
    monkeypatch.chdir(ROOT)
    assert train.main([*words, "OPTIM.MAX_EPOCH", "2", "OPTIM.LR", "0.5", "DATALOADER.TRAIN_X.BATCH_SIZE", "30"]) == 0
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "head.safetensors")]) == 0
    assert (tmp_path / "head.safetensors").stat().st_size < 100_000
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    alone, names, program = (
        block.replace('"head.safetensors"', repr(str(tmp_path / "head.safetensors"))) for block in code
    )
    assert "dassl" not in alone and len([line for line in alone.splitlines() if line]) <= 13
    scope = {}
    exec(alone, scope)
    exec(names, scope)
    record, tested = read_record(tmp_path / "run"), read_predictions(tmp_path / "run")
    assert scope["names"] == record["classnames"] == list(tested.classnames)
    chosen = scope["scores"]([str(path) for path in tested.paths]).argmax(1)
    assert torch.equal(chosen, torch.as_tensor(tested.top[:, 0]))
    right = chosen.eq(torch.as_tensor(tested.labels))
    assert int(right.sum()) == record["metrics"]["test"]["correct"] and len(right) == record["metrics"]["test"]["total"]
    capsys.readouterr()
    exec(program, {})
    assert f"\n{record['metrics']['test']['accuracy']} ['airplane', " in capsys.readouterr().out


@pytest.fixture(scope="module")
def halves(world):
    """Files of some runs in half precision."""
    made = {}
    for name in ("CoOp-CSC", "CLAP+InMaP", "GOPro", "GOPro-paper"):
        made[name] = world / f"{name}-half.safetensors"
        assert export.main([str(world / name), "--half", "--out", str(made[name])]) == 0, name
    return made


@pytest.mark.parametrize("name", ["CoOp-CSC", "CLAP+InMaP", "GOPro", "GOPro-paper"])
def test_half_precision_is_half_the_size_and_says_what_it_changes(world, halves, name, tmp_path, capsys):
    half, whole = load_file(halves[name]), load_file(world / f"{name}.safetensors")
    assert half.keys() == whole.keys()
    for key, value in half.items():
        learned = "learned." in key and whole[key].dtype == torch.float32
        assert value.dtype == (torch.float16 if learned else whole[key].dtype), key
        torch.testing.assert_close(value.to(whole[key].dtype), whole[key], atol=1e-6, rtol=2**-11)
    assert load_export(halves[name]).sha256 == metadata(halves[name])["sha256"]
    assert export.main([str(halves[name])]) == 0
    (told,) = re.findall(r"^stored in float16: float16 moves a score of 32 embedded images by at most (\S+) \(their "
                         r"scores span (\S+)\); (\d+) of 32 keep", capsys.readouterr().out, re.M)  # fmt: skip
    assert 0 <= float(told[0]) < 0.01 * float(told[1]) and int(told[2]) >= 28
    answers = []
    for source in (world / f"{name}.safetensors", halves[name]):
        out = tmp_path / f"{source.stem}.json"
        assert predict.main([str(world / "moved" / "sketch"), "--run", str(source), "--out", str(out)]) == 0
        rows = json.loads(out.read_text())["predictions"]
        answers.append({(row["path"], row["class"]): row["share"] for row in rows})
    assert answers[0] == pytest.approx(answers[1], abs=0.01) and (name == "CLAP+InMaP" or answers[0] != answers[1])


def test_numbers_too_large_for_half_precision_are_refused(world, halves):
    export_of = load_export(world / "GOPro.safetensors")
    export_of.learned["gopro"]["generator.ctx"][0, 0] = 70000.0
    with pytest.raises(ValueError, match=r"7e\+04, is too large for float16"):
        _ = replace(export_of, storage=Storage("float16")).tensors


def test_training_goes_on_from_a_file_without_the_unread_parts(world, tmp_path, tiny_clip, caplog):
    """The image projector, which the file lacks, is the fresh one; every other part is the file's."""
    assert export.main([str(world / "GOPro.safetensors"), "--unpack", str(tmp_path / "run")]) == 0
    assert "image_projector" not in str(load_checkpoint(tmp_path / "run/gopro/model-best.pth.tar")["state_dict"].keys())
    words = run_words("GOPro", tmp_path / "eval", world / "moved", tiny_clip)
    assert train.main([*words, "--eval-only", "--model-dir", str(tmp_path / "run")]) == 0
    assert read_record(tmp_path / "eval")["metrics"]["test"] == read_record(world / "GOPro")["metrics"]["test"]
    assert "which no score needs: they stay as they are" in caplog.text


@pytest.mark.parametrize("name", ["CoOp-CSC", "CLAP", "CLAP+InMaP", "GOPro", "GOPro-paper"])
def test_predict_answers_from_a_file_as_from_the_folder(world, tmp_path, name):
    found = []
    for source in (world / name, world / f"{name}.safetensors"):
        out = tmp_path / f"{source.name}.csv"
        assert predict.main([str(world / "moved" / "sketch"), "--run", str(source), "--out", str(out)]) == 0
        found.append(out.read_text())
    assert found[0] == found[1] and found[0].count("\n") == 91


def test_a_file_becomes_a_run_folder_again(world, tmp_path, tiny_clip, capsys):
    for name in ("CoOp-CSC", "CLAP+InMaP"):
        assert export.main([str(world / f"{name}.safetensors"), "--unpack", str(tmp_path / name)]) == 0
        assert read_record(tmp_path / name) == read_record(world / name)
    words = run_words("CoOp", tmp_path / "eval", world / "moved", tiny_clip, *SETTINGS["CoOp-CSC"])
    assert train.main([*words, "--eval-only", "--model-dir", str(tmp_path / "CoOp-CSC")]) == 0
    assert read_record(tmp_path / "eval")["metrics"]["test"] == read_record(world / "CoOp-CSC")["metrics"]["test"]
    more = ["TRAINER.INMAP.FROM", str(tmp_path / "CLAP+InMaP" / "refined")]
    assert train.main(run_words("InMaP", tmp_path / "again", world / "moved", tiny_clip, *more)) == 0
    assert read_record(tmp_path / "again")["metrics"]["test"] == read_record(world / "CLAP+InMaP")["metrics"]["test"]
    capsys.readouterr()
    error = refusal(capsys, world / "CoOp.safetensors", "--unpack", tmp_path / "eval")
    assert "is not empty" in error


def test_what_a_file_says_of_itself(world, capsys, monkeypatch, tmp_path):
    assert export.main([str(world / "CLAP+InMaP.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "refines: CLAP" in out and "plain classifier: none: " in out and "learned parts: proxies (52 numbers)" in out
    monkeypatch.chdir(tmp_path)
    assert export.main([str(world / "CoOp")]) == 0
    assert (tmp_path / "CoOp-FolderDomains-sketch-seed1.safetensors").is_file()


def test_other_backbones_are_refused(world, tiny_clip, other_clip, tmp_path, capsys):
    path = world / "CoOp.safetensors"
    assert load_export(path, load_backbone(f"local-dir:{tiny_clip}")).classifier.shape == (3, 16)
    other = load_backbone(f"local-dir:{other_clip}")
    with pytest.raises(ValueError, match=rf"belongs to the backbone local-dir:.* not to .*{other.weights_hash[:12]}"):
        load_export(path, other)
    config = metadata(path)["config"]
    config["MODEL"]["BACKBONE"]["NAME"] = f"local-dir:{other_clip}"
    moved = rewritten(path, tmp_path / "moved.safetensors", config=config)
    assert predict.main([str(world / "moved" / "sketch"), "--run", str(moved)]) == 2
    assert "was trained on backbone local-dir:" in capsys.readouterr().err


def test_a_lost_file_of_weights_is_looked_for_by_name(world, tmp_path):
    config = metadata(world / "CoOp.safetensors")["config"]
    config["MODEL"]["BACKBONE"]["WEIGHTS"] = "/nowhere/ViT-B-16.pt"
    moved = rewritten(world / "CoOp.safetensors", tmp_path / "moved.safetensors", config=config)
    out = tmp_path / "preds.csv"
    assert predict.main([str(world / "moved" / "sketch"), "--run", str(moved), "--out", str(out)]) == 0


def test_what_is_no_export(world, tmp_path, capsys):
    path, bad = world / "CoOp.safetensors", tmp_path / "bad.safetensors"
    bad.write_bytes(path.read_bytes()[:-100])
    assert "is not a whole safetensors file" in refusal(capsys, bad)
    bad.write_bytes(b"not a tensor in sight")
    assert "is not a whole safetensors file" in refusal(capsys, bad)
    save_file(load_file(path), bad)
    assert "its metadata lacks format, version, method" in refusal(capsys, bad)
    rewritten(path, bad, record=None, classnames=None)
    assert "its metadata lacks classnames, record;" in refusal(capsys, bad)
    rewritten(path, bad, record=[], backbone={"name": 3}, storage=[1])
    assert "what its metadata say of record, backbone, storage cannot be read" in refusal(capsys, bad)
    rewritten(path, bad, record={"method": "CoOp", "learned": {}})
    assert "not a valid record" in refusal(capsys, bad)
    rewritten(path, bad, version=2)
    assert "has version 2 of the format, this program reads 1" in refusal(capsys, bad)
    tensors = load_file(path)
    tensors["learned.prompt_learner.ctx"][0, 0] += 1e-3
    rewritten(path, bad, tensors)
    assert "another sha256" in refusal(capsys, bad)
    rewritten(path, bad, tensors, sha256=hash_state(tensors))
    assert "'prompt_learner' is not the one that the record was written of" in refusal(capsys, bad)
    rewritten(path, bad, classnames=["dog", "house"])
    assert "[3, 16], but classes and backbone say [2, 16]" in refusal(capsys, bad)


def test_a_method_that_keeps_nothing_is_not_exported(world, tmp_path, tiny_clip, capsys):
    assert train.main(run_words("ZLaP", tmp_path / "run", world / "moved", tiny_clip, "TRAINER.ZLAP.K", "3")) == 0
    error = refusal(capsys, tmp_path / "run", "--out", tmp_path / "head.safetensors")
    assert "ZLaP scores images together and keeps nothing" in error and not (tmp_path / "head.safetensors").exists()


def test_what_cannot_be_exported(world, tmp_path, capsys):
    assert "there is no folder" in refusal(capsys, tmp_path / "nothing")
    assert "no finished run in" in refusal(capsys, world)
    assert "name ends in .safetensors" in refusal(capsys, world / "CoOp", "--out", tmp_path / "head.pt")
    assert "--unpack takes an exported file" in refusal(capsys, world / "CoOp", "--unpack", tmp_path / "x")
    assert "--unpack FOLDER makes a folder" in refusal(capsys, world / "CoOp.safetensors", "--out", tmp_path / "x")
    shutil.copytree(world / "CoOp", tmp_path / "run")
    newer = load_checkpoint(tmp_path / "run" / "prompt_learner" / "model-best.pth.tar")
    newer["state_dict"]["ctx"] += 1
    newer["sha256"] = hash_state(newer["state_dict"])
    torch.save(newer, tmp_path / "run" / "prompt_learner" / "model-best.pth.tar")
    error = refusal(capsys, tmp_path / "run", "--out", tmp_path / "head.safetensors")
    assert "not the one that the record was written of" in error and not (tmp_path / "head.safetensors").exists()
    with pytest.raises(FileNotFoundError, match=r"exports beside it: .*CoOp\.safetensors"):
        load_export(world / "CoOP.safetensors")
