"""Images without labels in a user's own data set: a flat folder, or a csv without classes, and a file of class names.

Covered: the lists and names of both; a whole run of a method without labels, its record, predictions and what tables
say of it; a method that trains on labels, and every other refusal.
"""

import shutil

import numpy as np
import pytest

from dassl.data.datasets import build_dataset
from dassl_clip import Classifier
from dassl_clip.cli import table, train
from dassl_clip.clip.names import embedded_folder
from dassl_clip.engine.config import default_config
from dassl_clip.results.predictions import confusion_counts, read_predictions
from dassl_clip.results.records import read_record

NAMES = ("key", "star", "fish")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`photos/` with images alone, `photos.csv` with their paths, and `names.txt`."""
    root = tmp_path_factory.mktemp("world")
    (root / "photos").mkdir()
    for name in NAMES:
        for path in sorted((embedded_folder().parent / "icons" / "flat" / name).glob("*.png"))[:5]:
            shutil.copy(path, root / "photos" / path.name)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    lines = ["path", *(f"photos/{path.name}" for path in sorted((root / "photos").iterdir()))]
    (root / "photos.csv").write_text("\n".join(lines) + "\n")
    return root


def config(world, name, names=True):
    cfg = default_config()
    cfg.DATASET.NAME = name
    cfg.DATASET.ROOT = str(world / "photos" if name == "FolderClasses" else world)
    if name == "Manifest":
        cfg.DATASET.MANIFEST = "photos.csv"
    cfg.DATASET.CLASSNAMES = str(world / "names.txt") if names else ""
    return cfg


@pytest.mark.parametrize("name", ["FolderClasses", "Manifest"])
def test_every_image_is_tested_and_none_has_a_label(world, name):
    dataset = build_dataset(config(world, name))
    assert dataset.classnames == list(NAMES) and dataset.num_classes == 3 and dataset.unlabelled
    assert [item.impath for item in dataset.test] == sorted(map(str, (world / "photos").iterdir()))
    assert {item.label for item in dataset.test} == {-1} and dataset.val is None
    assert "15 images without labels" in dataset.protocol


def words(world, name, method, folder):
    (world / f"{name}.yaml").write_text(f"DATASET:\n  NAME: {name}\n")
    cfg = config(world, name)
    pairs = ["DATASET.CLASSNAMES", cfg.DATASET.CLASSNAMES, *(["DATASET.MANIFEST", "photos.csv"] * (name == "Manifest"))]
    return ["--trainer", method, "--dataset-config-file", str(world / f"{name}.yaml"), "--root", cfg.DATASET.ROOT,
            "--config-file", f"configs/trainers/{method}/icons.yaml", "--output-dir", str(folder), *pairs]  # fmt: skip


@pytest.mark.parametrize("name", ["FolderClasses", "Manifest"])
def test_a_run_predicts_and_measures_nothing(world, tmp_path, capsys, name):
    run = tmp_path / "run"
    assert train.main(words(world, name, "InMaP", run)) == 0
    assert "accuracy" not in capsys.readouterr().out.partition("** Environment **")[2].lower()
    record, saved = read_record(run), read_predictions(run, scores=True)
    assert record["untested"] == "no labels" and record["metrics"] == {} and record["num_train"] == 0
    assert (saved.labels == -1).all() and len(saved.paths) == 15
    files = sorted(map(str, (world / "photos").iterdir()))
    clf = Classifier("InMaP", list(NAMES), backbone="IconsCLIP").fit(files)
    names = np.array(saved.classnames)[saved.top[:, 0]]
    assert dict(zip(saved.paths.tolist(), names)) == dict(zip(files, clf.predict(files)))
    with pytest.raises(ValueError, match="without labels"):
        confusion_counts(saved)
    table.main([str(run)])  # says in a line that there is nothing to show, or shows nothing
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("method", ["LinearProbe", "CoOp"])
def test_a_method_that_trains_on_labels_is_refused(world, tmp_path, capsys, method):
    assert train.main(words(world, "FolderClasses", method, tmp_path / "run")) == 2
    assert f"{method} trains on labels, but the 15 images of FolderClasses have none" in capsys.readouterr().err


def test_what_measures_is_refused(world, tmp_path, capsys):
    pairs = ["TRAINER.ZEROSHOTCLIP.EVALUATE", "('forms',)"]
    assert train.main([*words(world, "FolderClasses", "ZeroshotCLIP", tmp_path / "run"), *pairs]) == 2
    assert "have no labels: leave SCENARIOS.TASK and EVALUATE out" in capsys.readouterr().err


def test_names_are_needed(world, tmp_path):
    with pytest.raises(ValueError, match="no column class"):
        build_dataset(config(world, "Manifest", names=False))
    with pytest.raises(ValueError, match="no class folder"):
        build_dataset(config(world, "FolderClasses", names=False))
    cfg = config(world, "FolderClasses")
    cfg.DATASET.CLASSNAMES = str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("key\nkey\n")
    with pytest.raises(ValueError, match='"key" twice'):
        build_dataset(cfg)
