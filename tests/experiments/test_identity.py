"""Whose number is it? Runs, checkpoints and evaluations against other images, files and configurations.

Covers `experiments/identity.py`, `cli/eval.py` and what `train`, `task`, `table`, `predict` do with them.
"""

import gzip
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dassl_clip.results import records, run_data


@pytest.fixture
def zeroshot(world):
    """`zeroshot(data, ...)` runs the small guesser's leave-one-out task on a tree; gives what it printed and stored."""

    def go(data, *more, code=0):
        words = world.task("--task", "lodo", *more, method="TinyGuess")
        words[words.index("--data") + 1] = str(data)
        done = world.run(words)
        assert done.returncode == code, done.stdout + done.stderr
        folders = sorted(world.out.glob("lodo/*/TinyGuess/*/*/*/seed1"))
        found = {folder.parent.name: records.read_record(folder)["metrics"]["test"]["accuracy"] for folder in folders}
        return done.stdout, found

    return go


def other_tree(world):
    """The same names, other images: hot and cold change places in most files."""
    other = world.root / "other"
    shutil.copytree(world.images, other)
    for domain in ("day", "night"):
        for number in range(8):
            one, two = (other / domain / name / f"{number:02}.png" for name in ("cold", "hot"))
            image = Image.open(one).copy()
            Image.open(two).copy().save(one)
            image.save(two)
    return other


def test_1_1_another_data_set_under_the_same_output(world, zeroshot):
    """A, then B, then A again: three right tables, and one line each that says what is run again and why."""
    other = other_tree(world)
    out, first = zeroshot(world.images)
    out, again = zeroshot(world.images)
    assert again == first and out.count("skipped, complete") == 2
    out, second = zeroshot(other)
    assert "skipped" not in out and out.count("redo: TinyGuess") == 2
    assert re.search(r"finished on other images: \d\d images changed \(first: day/cold/0\d.png\)", out)
    assert all(abs(second[name] - (100 - first[name])) < 45 and second[name] != first[name] for name in first)
    out, third = zeroshot(world.images)
    assert third == first and "finished on other images" in out
    stale = sorted(world.out.glob("lodo/*/*/*/*/*/seed1.stale-*"))
    assert len(stale) == 4  # nothing is lost


def test_1_1_images_that_were_added_or_removed(world, zeroshot):
    zeroshot(world.images)
    shutil.copy(world.images / "day/hot/00.png", world.images / "day/hot/new.png")
    (world.images / "night/cold/03.png").unlink()
    out, _ = zeroshot(world.images)  # the shots are drawn from what is there, so other shots count as added too
    assert out.count("finished on other images: ") == 2 and "added (first: day/hot/new.png)" in out
    folder = next(world.out.glob("lodo/*/TinyGuess/*/*/night/seed1"))
    assert records.read_record(folder)["metrics"]["test"]["total"] == 19


def test_1_1_the_folder_of_the_data_may_move(world, zeroshot):
    zeroshot(world.images)
    world.images.rename(world.root / "moved")
    out, _ = zeroshot(world.root / "moved")
    assert out.count("skipped, complete") == 2
    for path in (world.root / "moved").rglob("*[1-9].png"):
        path.unlink()
    out, _ = zeroshot(
        world.root / "moved"
    )  # too few images for the shots: what is finished stays, and is said not to be compared
    assert out.count("skipped, complete") == 2 and out.count("its images could not be compared: ") == 2


def test_1_1_old_records_are_skipped_and_say_so(world, zeroshot):
    zeroshot(world.images)
    for folder in world.out.glob("lodo/*/TinyGuess/*/*/*/seed1"):
        record = json.loads((folder / "record.json").read_text())
        del record["data"]
        (folder / "record.json").write_text(json.dumps(record | {"schema_version": 1}))
        (folder / run_data.DATA_NAME).unlink()
    out, _ = zeroshot(world.images)
    assert out.count("skipped, complete") == 2 and out.count(": data not recorded") == 2
    assert "data not recorded: these records do not say which images they are of" in out


def test_1_2_a_checkpoint_is_not_resumed_on_other_images(world, call_tiny):
    """Stopped after an epoch, then started again with images that changed, were added, or lie under another root."""
    other = other_tree(world)
    assert call_tiny("OPTIM.MAX_EPOCH", 1)[0] == 0
    (world.out / "record.json").unlink()
    more = ("OPTIM.MAX_EPOCH", 1)
    before = sorted((path, path.stat().st_mtime_ns) for path in (world.out / "tiny").iterdir())
    code, _, err = call_tiny("--root", other, *more)
    assert code == 2 and "holds checkpoints of a run on other images (16 images changed" not in err
    assert "holds checkpoints of a run on other images (32 images changed (first: day/cold/00.png))" in err
    assert err.count("\n") == 1 and "--resume" in err
    shutil.copy(world.images / "day/hot/00.png", world.images / "day/hot/new.png")
    code, _, err = call_tiny(*more)
    assert code == 2 and "1 image added (first: day/hot/new.png)" in err
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (world.out / "tiny").iterdir())
    (world.images / "day/hot/new.png").unlink()
    code, out, _ = call_tiny("OPTIM.MAX_EPOCH", 2)
    assert code == 0 and "epoch [2/2]" in out and "epoch [1/2]" not in out


def test_1_2_checkpoints_without_a_configuration(world, call_tiny):
    """`config.yaml` is missing: there is nothing to compare with, so nothing is resumed."""
    assert call_tiny("OPTIM.MAX_EPOCH", 1)[0] == 0
    (world.out / "config.yaml").unlink()
    code, _, err = call_tiny("OPTIM.MAX_EPOCH", 2)
    assert code == 2 and "holds checkpoints, but no config.yaml" in err and err.count("\n") == 1


def test_an_unfinished_run_on_other_images_is_moved_aside_by_a_task(world, zeroshot):
    other = other_tree(world)
    words = world.task("--task", "lodo", "--targets", "night", "TRAINER.TINYNET.FAULTS", "('lodo night bug',)")
    assert world.run(words).returncode == 1
    words[words.index("--data") + 1] = str(other)
    done = world.run([*words, "--dry-run"])
    assert "redo: TinyNet" in done.stdout and "an unfinished run of other images (25 images changed" in done.stdout


def test_1_3_two_data_sets_in_one_output_have_two_tables(world, zeroshot):
    zeroshot(world.images)
    other = world.root / "seasons"
    for number, (name, domain) in enumerate((("summer", "day"), ("winter", "night"))):
        shutil.copytree(world.images / domain, other / name)
        shutil.copy(other / name / "hot/00.png", other / name / f"hot/more{number}.png")
    zeroshot(other)
    done = world.run(["table", str(world.out)])
    heads = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("accuracy (%)")]
    assert sorted(heads) == [["day", "night", "mean"], ["summer", "winter", "mean"]]


def test_1_6_copies_of_a_run(world, zeroshot):
    """`cp -r` is no second run; a copy with another number is named."""
    zeroshot(world.images)
    folder = next(world.out.glob("lodo/*/TinyGuess/*/*/night/seed1"))
    shutil.copytree(folder, world.out / "copy")
    done = world.run(["table", str(world.out)])
    assert f"copy: {folder}: a copy of the run in" in " ".join(done.stdout.split()) and "differ" not in done.stdout
    assert "2 finished runs" in world.run(["report", str(world.out), "--no-plots", "--out", "page.html"]).stdout
    record = json.loads((world.out / "copy/record.json").read_text())
    record["metrics"]["test"]["accuracy"] = 1.5
    (world.out / "copy/record.json").write_text(json.dumps(record))
    done = world.run(["table", str(world.out)])
    assert "caution: two records of one cell differ: TinyGuess" in " ".join(done.stdout.split())
    assert str(world.out / "copy") in done.stdout and "1.5" in done.stdout


@pytest.fixture
def call_tiny(world):
    """`call_tiny(*more)` runs TinyNet by `train`; gives code, stdout and stderr."""

    def go(*more):
        done = world.run(["train", *world.words(), *map(str, more)])
        return done.returncode, done.stdout, done.stderr

    return go


# --------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("given", [("--model-dir", ""), ()])
def test_2_2_untrained_parts_are_not_evaluated(world, call_tiny, given):
    code, _, err = call_tiny("--eval-only", *given)
    assert code == 2 and err.count("\n") == 1
    assert ("--model-dir is empty (an unset variable?)" if given else "--eval-only without --model-dir") in err
    assert not (world.out / "record.json").exists()


def test_2_3_an_evaluation_writes_into_no_run(world, call_tiny):
    """Not into the run that it evaluates, nor above or inside it, nor into another run."""
    assert call_tiny()[0] == 0
    second = world.root / "second"
    assert call_tiny("--output-dir", second, "--seed", 2)[0] == 0
    before = {path: path.read_bytes() for path in (*world.out.rglob("*"), *second.rglob("*")) if path.is_file()}
    for folder in (world.out, world.out / "tiny" / "..", world.root, world.out / "eval", second):
        code, _, err = call_tiny("--eval-only", "--model-dir", world.out, "--output-dir", folder, "OPTIM.LR", 0.3)
        assert code == 2 and "an evaluation has a folder of its own" in err and err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (*world.out.rglob("*"), *second.rglob("*")) if path.is_file()}


def test_2_3_a_look_with_no_train_changes_no_run(world, call_tiny):
    """`--no-train` in a finished run's folder with other settings: configuration, images and record stay."""
    assert call_tiny()[0] == 0
    kept = {name: (world.out / name).read_bytes() for name in ("config.yaml", "record.json", run_data.DATA_NAME)}
    assert call_tiny("--no-train", "OPTIM.LR", 0.3, "DATASET.NUM_SHOTS", 2)[0] == 0
    assert kept == {name: (world.out / name).read_bytes() for name in kept}


def test_2_1_a_record_says_what_was_trained_on_what(world, call_tiny):
    assert call_tiny("DATASET.NUM_SHOTS", 4)[0] == 0
    away = ("--source-domains", "night", "--target-domains", "day", "--seed", 7)
    code, _, _ = call_tiny("--eval-only", "--model-dir", world.out, "--output-dir", world.root / "eval", *away)
    assert code == 0
    trained, tested = records.read_record(world.out), records.read_record(world.root / "eval")
    assert tested["task"] == "eval" and tested["num_train"] == trained["num_train"] == 8
    assert (tested["shots"], tested["seed"], tested["source_domains"]) == (4, 1, ["day"])
    keys = ("dataset", "shots", "seed", "config_hash", "data_fingerprint", "finished_at")
    assert {key: tested["trained"][key] for key in keys} == {key: trained[key] for key in keys}
    assert tested["protocol"].startswith(
        "evaluation: trained on FolderDomains/day (4 images per class, config tiny), tested on FolderDomains/day"
    )
    table = world.run(["table", str(world.out), str(world.root / "eval")]).stdout
    assert table.count("accuracy (%)") == 2
    assert tested["tested_training_images"] == 8 and "tested_training_images" not in trained
    assert "caution: day, seed 1: 8 of the tested images of TinyNet (tiny) were trained on" in table
    assert "trained on FolderDomains/day (4 images per class, config tiny); tested on FolderDomains/day" in table


def test_eval_needs_nothing_that_the_run_knows(world, call_tiny):
    """Other targets of the run's data, another folder, and again: the same digits as the run's own test."""
    assert call_tiny("DATASET.NUM_SHOTS", 4)[0] == 0
    words = ["eval", str(world.out), "--import", str(world.plugin), "--out", str(world.root / "evals")]
    done = world.run(words)
    assert done.returncode == 0, done.stderr
    (folder,) = (world.root / "evals").rglob("seed1")
    first = records.read_record(folder)
    assert first["metrics"] == records.read_record(world.out)["metrics"]
    assert "trained on FolderDomains/day" in done.stdout and "** Config **" not in done.stdout
    assert "skipped, complete" in world.run(words).stdout
    world.images.rename(world.root / "moved")
    done = world.run([*words, "--data", str(world.root / "moved")])
    assert done.returncode == 0 and "skipped, complete" in done.stdout
    # Domain day trained; its held-out fifth is tested, never what was trained on.
    done = world.run([*words, "--data", str(world.root / "moved"), "--targets", "day"])
    assert done.returncode == 0, done.stderr
    held_out = records.read_record(next((world.root / "evals").rglob("day/seed1")))
    assert held_out["metrics"]["test"]["total"] == 4
    # Other images: every one is tested.
    other = world.root / "third"
    shutil.copytree(world.root / "moved" / "day", other / "dusk")
    done = world.run([*words, "--data", str(other)])
    assert done.returncode == 0, done.stderr
    assert records.read_record(next((world.root / "evals").rglob("dusk/seed1")))["metrics"]["test"]["total"] == 20
    done = world.run([*words, "--data", str(other), "--targets", "dust"])
    assert done.returncode == 2 and "Did you mean 'dusk'?" in done.stderr and done.stderr.count("\n") == 1
    done = world.run(["eval", str(world.root / "nowhere")])
    assert done.returncode == 2 and "there is no folder" in done.stderr


@pytest.mark.parametrize("dataset", ["folder_classes", "manifest"])
def test_2_4_an_evaluation_on_your_own_images_tests_every_one(world, call_tiny, dataset):
    """Row 2.4: folders and lists publish no test images, so none is held out."""
    assert call_tiny("DATASET.NUM_SHOTS", 4)[0] == 0
    shutil.copytree(world.images / "night", world.root / "mine")
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in (world.root / "mine").rglob("*.png")]
    (world.root / "mine" / "manifest.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    words = ["eval", str(world.out), "--import", str(world.plugin), "--out", str(world.root / "evals")]
    done = world.run([*words, "--dataset", dataset, "--data", str(world.root / "mine")])
    assert done.returncode == 0, done.stderr
    record = records.read_record(next((world.root / "evals").rglob("seed1")))
    assert record["metrics"]["test"]["total"] == 20 and record["data_protocol"] == "all-images"


def test_a_run_made_of_a_replaced_file_is_made_again(world, zeroshot):
    """The configuration names a file of class names; its content is part of what was computed."""
    names = world.root / "list.csv"
    rows = [f"{path.relative_to(world.images)},{path.parent.name},{path.parent.parent.name}"
            for path in sorted(world.images.rglob("*.png"))]  # fmt: skip
    names.write_text("path,label,domain\n" + "\n".join(rows) + "\n")
    world.dataset.write_text(f"DATASET:\n  NAME: Manifest\n  MANIFEST: {names}\n")
    zeroshot(world.images)
    assert zeroshot(world.images)[0].count("skipped, complete") == 2
    names.write_text(names.read_text() + "\n")
    assert "made with another content of the file that DATASET.MANIFEST names" in zeroshot(world.images)[0]


def test_data_of_a_run_lie_in_its_folder(world, call_tiny):
    assert call_tiny()[0] == 0
    data, record = run_data.read_data(world.out), records.read_record(world.out)
    assert data.fingerprint == record["data_fingerprint"] == record["data"]["fingerprint"]
    text = gzip.decompress((world.out / run_data.DATA_NAME).read_bytes()).decode()
    assert len(text.splitlines()) == 1 + sum(record["data"]["counts"].values()) == 1 + 40
    sizes = {image.path: image.size for image in data.images}
    assert sizes["night/hot/03.png"] == os.path.getsize(world.images / "night/hot/03.png")
    assert np.all(np.array(list(sizes.values())) > 0)
