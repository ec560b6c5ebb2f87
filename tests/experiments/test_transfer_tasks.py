"""Base-to-new, cross-dataset and single-source tasks: one run trains, others evaluate what it learned.

Covers `transfer_runs` and the refusals in `experiments/plan.py`, the stages in `cli/task.py`, evaluation in
`cli/train.py`, and the columns of transfer tasks in `results/tables.py`. Runs are real: CoOp and zero-shot CLIP
with a small CLIP of random weights on small class folders, and a list of other images as the other data set.
"""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dassl_clip.cli import __main__ as door
from dassl_clip.cli import train
from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.engine import registry
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.experiments import plan
from dassl_clip.experiments.methods import Method
from dassl_clip.experiments.run import Job
from dassl_clip.results import records
from dassl_clip.results.errors import UserError
from dassl_clip.results.protocols import flatten_config

COLOURS = {"ash": (90, 90, 90), "blue": (30, 40, 220), "coal": (15, 15, 15), "dune": (220, 190, 120),
           "elm": (20, 150, 60)}  # fmt: skip
BASE, NEW = ["ash", "blue", "coal"], ["dune", "elm"]
OTHERS = {"rose": (230, 40, 90), "sky": (120, 180, 240), "tan": (210, 180, 140)}


@pytest.fixture
def small(world, tiny_clip):
    """The tiny world with class folders, a list of other images, and settings for the small CLIP."""
    root, draw = world.root / "plain", np.random.default_rng(3)

    def fill(folder, colour, count):
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = np.array(colour) + draw.normal(0, 40, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{index}.png")

    for name, colour in COLOURS.items():
        fill(root / "train" / name, colour, 4)
        fill(root / "test" / name, colour, 6)
    for name, colour in OTHERS.items():
        fill(root / "others" / name, colour, 5)
    lines = [f"others/{name}/{index}.png,{name},test" for name in OTHERS for index in range(5)]
    (root / "manifest.csv").write_text("path,class,split\n" + "\n".join(lines) + "\n")
    world.images = root
    for name, dataset in (("plain", "FolderClasses"), ("listed", "Manifest")):
        (world.root / f"{name}.yaml").write_text(yaml.safe_dump({"DATASET": {"NAME": dataset}}))
    world.dataset, world.other = world.root / "plain.yaml", world.root / "listed.yaml"
    settings = {
        "MODEL": {"BACKBONE": {"NAME": f"local-dir:{tiny_clip}"}},
        "INPUT": {"TRANSFORMS": ["normalize"]},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 3}},
        "OPTIM": {"NAME": "sgd", "LR": 0.5, "MAX_EPOCH": 1},
        "TRAIN": {"PRINT_FREQ": 1},
    }
    world.config = world.root / "small.yaml"
    world.config.write_text(yaml.safe_dump(settings))
    return world


def words(small, method, *more):
    """Arguments of `dassl-clip task` for base to new."""
    place = ["--data", str(small.images), "--out", str(small.out), "--config", str(small.config)]
    return ["task", method, str(small.dataset), "1", "--task", "b2n", *place, "--shots", "2", "--jobs", "1", *more]


def record(folder):
    found = records.read_record(folder)
    assert found is not None, folder
    return found


def accuracy(folder):
    return record(folder)["metrics"]["test"]["accuracy"]


def rows_of(text):
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1 and not row[0].startswith("---")}


def planned(dataset, trainer, name, seeds=(1,), config="", pairs=(), **changes):
    registry.register()
    return plan.plan_runs(plan.Request(dataset, seeds, tasks=(name,), **changes), Method(trainer, config, pairs))


# --------------------------------------------------------------------------------------------------- base to new


def test_base_to_new_trains_once_and_evaluates_what_was_learned(small):
    done = small.run(words(small, "CoOp", "--reference", f"ZeroshotCLIP:{small.config}"))
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    above = small.out / "b2n" / "plain"
    coop, zeroshot = above / "CoOp" / "small" / "shots2", above / "ZeroshotCLIP"
    base, new = coop / "base" / "seed1", coop / "new" / "seed1"
    trained, tested = record(base), record(new)

    assert (trained["classnames"], tested["classnames"]) == (BASE, NEW)
    assert (trained["class_subset"], tested["class_subset"]) == ("base", "new")
    assert trained["metrics"]["test"]["total"] == 6 * len(BASE) and tested["metrics"]["test"]["total"] == 6 * len(NEW)
    assert trained["num_train"] == tested["num_train"] == 2 * len(BASE)
    assert {item["task"] for item in (trained, tested)} == {"b2n"}
    assert {item["source_dataset"] for item in (trained, tested)} == {"FolderClasses"}

    # the new run evaluates the base run's learned parts and makes none of its own
    assert tested["evaluated_from"] == str(base)
    assert tested["learned"] == trained["learned"] and tested["learned"]["prompt_learner"]["sha256"]
    assert list((base / "prompt_learner").glob("model*")) and not list(new.rglob("model*.pth.tar*"))
    assert "epoch [1/1]" in (base / "log.txt").read_text() and "epoch [" not in (new / "log.txt").read_text()

    # the same checkpoint by hand
    args = ["--trainer", "CoOp", "--config-file", str(small.config), "--dataset-config-file", str(small.dataset)]
    args += ["--root", str(small.images), "--seed", "1", "--output-dir", str(small.root / "hand"), "--eval-only"]
    args += ["--model-dir", str(base), "DATASET.SUBSAMPLE_CLASSES", "new"]
    assert small.run(["train", *args]).returncode == 0
    assert record(small.root / "hand")["metrics"]["test"] == tested["metrics"]["test"]

    # the table: base, new and their harmonic mean, gains over zero-shot CLIP
    shown = rows_of(done.stdout)
    x, y = accuracy(base), accuracy(new)
    harmonic = 2 * x * y / (x + y)
    assert shown["accuracy (%)"] == ["base", "new", "HM"]
    assert [float(cell) for cell in shown["CoOp (small)"]] == pytest.approx([x, y, harmonic], abs=0.0501)
    (zero,) = [label for label in shown if label.startswith("ZeroshotCLIP")]
    plain = [accuracy(next(zeroshot.glob(f"*/shots2/{name}/seed1"))) for name in ("base", "new")]
    plain.append(2 * plain[0] * plain[1] / sum(plain))
    assert [float(cell) for cell in shown[zero]] == pytest.approx(plain, abs=0.0501)
    gains = [float(cell) for cell in shown["gain of CoOp (small)"]]
    assert gains == pytest.approx([x - plain[0], y - plain[1], harmonic - plain[2]], abs=0.0501)
    # nothing is trained without labels
    assert {record(folder)["num_train"] for folder in zeroshot.glob("*/*/*/seed1")} == {0}

    # folders give the same table; again: nothing runs; without the base run, it alone is made again
    again = small.run(["table", str(small.out), "--reference", "ZeroshotCLIP"])
    assert rows_of(again.stdout)["CoOp (small)"] == shown["CoOp (small)"]
    assert small.run(words(small, "CoOp")).stdout.count("skipped, complete") == 2
    (base / "record.json").unlink()
    third = small.run(words(small, "CoOp"))
    assert third.stdout.count("skipped, complete") == 1 and third.stdout.count("[1/1]") >= 1
    assert record(base)["metrics"] == trained["metrics"]


def test_new_classes_wait_for_a_base_run_that_is_finished(small):
    done = small.run(words(small, "CoOp", "OPTIM.LR", "1e30"))  # training ends with numbers that are not finite
    assert done.returncode == 1
    assert "left out: CoOp (small, LR=1e_30) b2n new seed 1: it needs the run in " in done.stderr
    assert "2 of 2 runs are missing from the table" in done.stderr
    assert done.stdout.count("FAILED") == 1 and not list(small.out.rglob("record.json"))
    assert not (small.out / "b2n/plain/CoOp/small+OPTIM.LR=1e_30/shots2/new").exists()


def test_the_plan_of_base_to_new(small):
    runs = planned(str(small.dataset), "CoOp", "b2n", (1, 2), str(small.config), out="out", data=str(small.images))
    assert [(run.target, run.seed) for run in runs] == [("base", 1), ("new", 1), ("base", 2), ("new", 2)]
    for base, new in (runs[:2], runs[2:]):
        assert str(base.folder) == f"out/b2n/plain/CoOp/small/shots16/base/seed{base.seed}"
        assert str(new.folder) == f"out/b2n/plain/CoOp/small/shots16/new/seed{new.seed}"
        assert base.needs is None and new.needs == base.folder
        assert (base.config.DATASET.SUBSAMPLE_CLASSES, new.config.DATASET.SUBSAMPLE_CLASSES) == ("base", "new")
        assert train.parse(new.words)[1] == Job(eval_only=True, model_dir=str(base.folder))
        assert train.parse(base.words)[1] == Job()
        assert base.row == new.row
    assert sum(" --eval-only " in run.command for run in runs) == 2
    assert train.parse(shlex.split(runs[1].command)[2:]) == train.parse(runs[1].words)


# -------------------------------------------------------------------------------------------------- other data sets

TEN = ["Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft", "SUN397",
       "DescribableTextures", "EuroSAT", "UCF101"]  # fmt: skip
VARIANTS = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]


@pytest.mark.parametrize(("name", "tested"), [("xd", TEN), ("dg", VARIANTS)])
def test_plans_from_imagenet_to_others(name, tested):
    runs = planned("imagenet", "GOPro", name, (3,), out="out", data="/data")
    assert [run.target for run in runs] == ["ImageNet", *tested]
    first = runs[0]
    assert first.needs is None and str(first.folder) == f"out/{name}/imagenet/GOPro/vit_b16/shots16/ImageNet/seed3"
    for run in runs:
        overrides, job = train.parse(run.words)
        assert str(run.folder) == f"out/{name}/imagenet/GOPro/vit_b16/shots16/{run.target}/seed3"
        facts = {"DATASET.NAME": run.target, "DATASET.NUM_SHOTS": 16, "DATASET.SUBSAMPLE_CLASSES": "all", "SEED": 3}
        facts |= {"RUN.SOURCE": "ImageNet", "RUN.TASK": name}
        assert flatten_config(run.config).items() >= facts.items()
        assert resolve_config(overrides) == run.config
        assert yaml.safe_load(Path(overrides.dataset_file).read_text())["DATASET"]["NAME"] == run.target
        assert overrides.trainer_file == first.overrides.trainer_file
        assert run.needs == (None if run is first else first.folder)
        assert job == (Job() if run is first else Job(eval_only=True, model_dir=str(first.folder)))
        assert run.row == first.row
    few = planned("imagenet", "GOPro", name, (1, 2), out="out", targets=(Path(runs[-1].words[3]).stem,))
    assert [(run.target, run.seed) for run in few] == [(t, s) for s in (1, 2) for t in ("ImageNet", tested[-1])]


def test_other_data_sets_keep_the_sources_config_of_the_method(tmp_path):
    """A source whose name has a config of its own: `icons` takes `CoOp/icons.yaml` to every other data set too."""
    (tmp_path / "icons.yaml").write_text("DATASET: {NAME: ImageNet}\n")
    runs = planned(str(tmp_path / "icons.yaml"), "CoOp", "xd", out="out")
    assert {Path(run.overrides.trainer_file).parts[-2:] for run in runs} == {("CoOp", "icons.yaml")}
    assert {run.config.MODEL.BACKBONE.NAME for run in runs} == {"IconsCLIP"} and len(runs) == 11


def test_changed_keys_hold_for_every_run_and_show_in_the_folder():
    runs = planned("imagenet", "CoOp", "dg", pairs=(("OPTIM.LR", "0.01"), ("DATASET.NUM_SHOTS", "4")), out="out")
    assert {run.config.OPTIM.LR for run in runs} == {0.01}
    assert {run.config.DATASET.NUM_SHOTS for run in runs} == {4}
    assert {run.folder.parts[-4:-2] for run in runs} == {("vit_b16+OPTIM.LR=0.01", "shots4")}


def test_cross_data_set_end_to_end(small):
    """A task that evaluates on a user's list of images: trained on the class folders, tested on both."""
    module = small.root / "my_tasks.py"
    own = f"TASKS['xd'] = Task(tested_on=({str(small.other)!r},))"
    module.write_text(f"from dassl_clip.experiments.tasks import TASKS, Task\n{own}\n")
    given = words(small, "CoOp", "--import", str(module), "--task", "xd")
    dry = small.run([*given, "--dry-run"])
    assert [line.split()[-3:] for line in dry.stdout.splitlines()] == 2 * [["2", "RUN.SOURCE", "FolderClasses"]]
    done = small.run(given)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    above = small.out / "xd" / "plain" / "CoOp" / "small" / "shots2"
    source, target = record(above / "FolderClasses" / "seed1"), record(above / "Manifest" / "seed1")
    assert (source["classnames"], target["classnames"]) == (list(COLOURS), list(OTHERS))
    assert target["learned"] == source["learned"]
    assert target["evaluated_from"] == str(above / "FolderClasses" / "seed1")
    assert target["num_train"] == source["num_train"] == 2 * len(COLOURS)
    assert (target["dataset"], target["source_dataset"]) == ("Manifest", "FolderClasses")
    assert target["metrics"]["test"]["total"] == 15
    shown = rows_of(small.run(["table", str(small.out)]).stdout)
    assert shown["accuracy (%)"] == ["FolderClasses", "Manifest", "mean of targets"]
    a, b = (item["metrics"]["test"]["accuracy"] for item in (source, target))
    assert [float(cell) for cell in shown["CoOp (small)"]] == pytest.approx([a, b, b], abs=0.0501)
    assert rows_of(done.stdout)["CoOp (small)"] == shown["CoOp (small)"]


def test_two_tasks_that_train_the_same_run_share_it(small):
    """`xd` and `dg` in one command, then `dg` alone after `xd` with other keys: trained once for each configuration."""
    module = small.root / "my_tasks.py"
    own = "\n".join(f"TASKS[{name!r}] = Task(tested_on=({str(small.other)!r},))" for name in ("xd", "dg"))
    module.write_text(f"from dassl_clip.experiments.tasks import TASKS, Task\n{own}\n")
    given = words(small, "CoOp", "--import", str(module))
    position = given.index("b2n")

    def place(name, column, config="small"):
        return small.out / name / "plain" / "CoOp" / config / "shots2" / column / "seed1"

    done = small.run([*given[:position], "xd", "dg", *given[position + 1 :]])
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    xd, dg = place("xd", "FolderClasses"), place("dg", "FolderClasses")
    assert f"taken over: CoOp (small) dg FolderClasses seed 1 from {xd}, which is the same run\n" in done.stdout
    made, taken = record(xd), record(dg)
    assert taken["taken_over_from"] == str(xd) and (made["task"], taken["task"]) == ("xd", "dg")
    changed = {key for key in taken if taken[key] != made.get(key)}
    assert {"task", "taken_over_from"} <= changed <= {"task", "taken_over_from", "protocol"}
    assert record(place("dg", "Manifest"))["evaluated_from"] == str(dg)
    assert record(place("dg", "Manifest"))["metrics"]["test"] == record(place("xd", "Manifest"))["metrics"]["test"]
    again = small.run([*given[:position], "dg", *given[position + 1 :]])
    assert again.stdout.count("skipped, complete: ") == 2

    other = ["OPTIM.LR", "0.25"]
    assert small.run([*given[:position], "xd", *given[position + 1 :], *other]).returncode == 0
    shutil.rmtree(dg.parents[4])
    xd_changed, dg_changed = (place(task, "FolderClasses", "small+OPTIM.LR=0.25") for task in ("xd", "dg"))
    dg_changed.mkdir(parents=True)
    (dg_changed / "predictions.npz").write_bytes(b"of a run that died")
    more = small.run([*given[:position], "dg", *given[position + 1 :], *other])
    assert more.returncode == 0 and f"from {xd_changed}" in more.stdout
    assert (dg_changed / "predictions.npz").read_bytes() == (xd_changed / "predictions.npz").read_bytes()
    assert (dg_changed.parent / "seed1.stale-1" / "predictions.npz").read_bytes() == b"of a run that died"
    assert record(xd) == made  # untouched by all of this


def test_an_evaluation_of_another_backbones_run_is_refused(small, other_clip):
    done = small.run(words(small, "CoOp"))
    assert done.returncode == 0, done.stderr
    args = ["--trainer", "CoOp", "--config-file", str(small.config), "--dataset-config-file", str(small.dataset)]
    args += ["--root", str(small.images), "--output-dir", str(small.root / "hand"), "--eval-only", "--model-dir"]
    args += [str(small.out / "b2n/plain/CoOp/small/shots2/base/seed1"), "DATASET.SUBSAMPLE_CLASSES", "new"]
    told = small.run(["train", *args, "MODEL.BACKBONE.NAME", f"local-dir:{other_clip}"])
    assert told.returncode == 2 and "was trained on backbone" in told.stderr and told.stderr.count("\n") == 1
    assert not records.is_complete(small.root / "hand")


# ------------------------------------------------------------------------------- domains in place of other data sets

STYLES = ("emoji", "flat", "line", "solid")
THREE = ("emoji", "flat", "solid")


def parts(run):
    node = run.config.DATASET
    return tuple(node.SOURCE_DOMAINS), tuple(node.TARGET_DOMAINS), node.SUBSAMPLE_CLASSES


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("b2n", (), [("base", "base", STYLES, STYLES, "base"), ("new", "new", STYLES, STYLES, "new")]),
        (
            "xd",
            (),
            [
                ("Icons/emoji base", "emoji-base", ("emoji",), ("emoji",), "base"),
                *((f"Icons/{t} new", f"emoji-base-to-{t}-new", ("emoji",), (t,), "new") for t in STYLES[1:]),
            ],
        ),
        (
            "dg",
            ("line",),
            [
                ("Icons/emoji+flat+solid", "emoji+flat+solid", THREE, THREE, "all"),
                ("Icons/line", "emoji+flat+solid-to-line", THREE, ("line",), "all"),
            ],
        ),
    ],
)  # fmt: skip
def test_plans_inside_a_data_set_with_domains(name, targets, expected):
    runs = planned("icons", "CoOp", name, (2,), out="out", targets=targets)
    assert [(run.target, run.folder.parts[-2], *parts(run)) for run in runs] == expected
    first = runs[0]
    for run in runs:
        assert str(run.folder.parent.parent) == f"out/{name}/icons/CoOp/icons/shots16"
        assert ("Icons" if name == "b2n" else first.target) == run.config.RUN.SOURCE
        assert (run.needs, run.evaluates) == ((None, False) if run is first else (first.folder, True))
        assert not run.twins
        overrides, job = train.parse(run.words)
        assert resolve_config(overrides) == run.config and job.eval_only == run.evaluates


def test_cross_data_set_on_the_icons(tmp_path, capsys, helper):
    """Trained on the base classes of three styles, tested on the new classes of the fourth: images and table."""
    place = ["--out", str(tmp_path), "--targets", "solid", "--shots", "1", "--jobs", "1", "OPTIM.MAX_EPOCH", "1"]
    child = helper.start(["task", "CoOp", "icons", "1", "--task", "xd", *place], tmp_path)
    out, err = child.communicate()
    assert child.returncode == 0, err
    shown = rows_of(out)
    source, target = (record(next(tmp_path.rglob(f"*-{end}/seed1"))) for end in ("base", "new"))
    with (ICONS_FOLDER / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = json.loads((ICONS_FOLDER / "manifest.json").read_text())["classes"]
    base, new = names[:23], names[23:]  # 45 classes
    assert (source["classnames"], target["classnames"]) == (base, new)
    counted = [row for row in rows if row["domain"] != "solid" and row["class"] in base and row["split"] == "test"]
    assert source["metrics"]["test"]["total"] == len(counted)
    assert target["metrics"]["test"]["total"] == sum(row["domain"] == "solid" and row["class"] in new for row in rows)
    assert source["num_train"] == 23  # one per class, of the three styles together
    assert target["learned"] == source["learned"] and "tested_training_images" not in target
    assert shown["accuracy (%)"] == ["Icons/emoji+flat+line base", "Icons/solid new", "mean of targets"]
    cells = [source["metrics"]["test"]["accuracy"], *2 * [target["metrics"]["test"]["accuracy"]]]
    (row,) = [row for name, row in shown.items() if name.startswith("CoOp")]
    assert [float(cell) for cell in row] == pytest.approx(cells, abs=0.0501)
    assert door.main(["table", str(tmp_path)]) == 0
    assert row in rows_of(capsys.readouterr().out).values()  # from the folders too: one table


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("dataset", "trainer", "name", "changes", "sentence"),
    [
        ("caltech101", "LinearProbe", "b2n", {}, r"^b2n evaluates on other classes than were trained on; LinearProbe "),
        ("imagenet", "LinearProbe", "xd", {}, r"learns parts for its own classes alone\. Take a method such as CL"),
        ("caltech101", "InMaP", "b2n", {}, r"InMaP learns parts for its own classes alone"),
        ("caltech101", "CoOp", "b2n", {"pairs": (("TRAINER.COOP.CSC", "True"),)}, r"CoOp learns parts for its own cl"),
        ("pacs", "CoOp", "b2n", {"targets": ("photo",)}, r"^b2n tests base and new classes of one data set, so no"),
        ("icons", "GOPro", "xd", {"targets": ("lin",)}, r"^Icons has no domain 'lin'\. Did you mean 'line'\?"),
        ("icons", "GOPro", "dg", {"targets": STYLES}, r"^dg trains on the domains that are"),
        ("imagenet", "CoOp", "dg", {"targets": ("dtd",)}, r"^dg has no target 'dtd'\..* Its targets: imagenet_v2, im"),
    ],
)  # fmt: skip
def test_tasks_without_sense_are_refused_before_anything_runs(dataset, trainer, name, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        planned(dataset, trainer, name, **changes)


def test_methods_that_carry_over_to_other_classes():
    for trainer in ("ZeroshotCLIP", "CoOp", "GOPro", "CLAP"):
        assert [run.target for run in planned("dtd", trainer, "b2n")] == ["base", "new"]


def test_class_specific_contexts_are_refused_by_the_run_itself_too(small):
    """Whoever evaluates such a run by hand gets a sentence, not other classes' contexts."""
    args = ["--trainer", "CoOp", "--config-file", str(small.config), "--dataset-config-file", str(small.dataset)]
    args += ["--root", str(small.images), "--seed", "1", "TRAINER.COOP.CSC", "True", "DATASET.NUM_SHOTS", "1"]
    base, new = small.root / "base", small.root / "new"
    done = small.run(["train", *args, "--output-dir", str(base), "DATASET.SUBSAMPLE_CLASSES", "base"])
    assert done.returncode == 0, done.stderr
    more = ["--output-dir", str(new), "--eval-only", "--model-dir", str(base), "DATASET.SUBSAMPLE_CLASSES", "new"]
    told = small.run(["train", *args, *more])
    assert told.returncode == 2 and "class-specific parts fit no other classes" in told.stderr
    assert json.loads((base / "record.json").read_text())["num_train"] == 3
