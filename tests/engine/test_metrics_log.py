"""Where numbers go besides tensorboard.

Covers: the rows of `metrics.csv` against the record's history and metrics, with and without epochs, after a kill and a
resume (equal to an undisturbed run's, no row twice, whatever lay there); Weights & Biases: that it synchronises
tensorboard, the resolved settings, the same id after a resume, a failure at the start or at the end, that it is not
imported unasked, and the message for a logger that is unknown or not installed. A stand-in for the package `wandb`
writes down how it is called.
"""

import csv
import json
import sys

import pytest

from dassl_clip.engine import metrics_log, registry
from dassl_clip.engine.config import default_config
from dassl_clip.engine.fingerprint import config_hash

WANDB = """
import json, os
from pathlib import Path

class Run:
    def finish(self):
        if os.environ.get("FAILS") == "finish":
            raise ConnectionError("the network is gone")

def init(**given):
    if os.environ.get("FAILS") == "init":
        raise PermissionError("403:\\n not logged in")
    given["files"] = [path.name for path in Path(given["dir"], "tensorboard").glob("events*")]
    with open(os.environ["LOGGED"], "a") as file:
        file.write(json.dumps(given) + "\\n")
    return Run()
"""
COOP = ("CoOp", "TRAINER.COOP.N_CTX", 2, "TEST.FINAL_MODEL", "best_val")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A package `wandb` on the path; gives a function that reads how its runs were started."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(WANDB)
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("LOGGED", str(log))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    sys.modules.pop("wandb", None)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(row, names):
    return {name: float(row[name]) for name in names}


def test_a_row_for_each_epoch_and_one_for_the_end(run):
    folder, record, _ = run(*COOP)
    first, second, last = rows(folder)
    for row, entry in zip((first, second), record["history"]):
        assert row["stage"] == "train" and int(row["epoch"]) == entry["epoch"]
        assert numbers(row, ("lr", "loss", "ce")) == {key: entry[key] for key in ("lr", "loss", "ce")}
        assert 0 <= float(row["val/accuracy"]) <= 100 and row["test/accuracy"] == ""
    assert last["stage"] == "final" and last["epoch"] == last["loss"] == last["val/accuracy"] == ""
    assert float(last["test/accuracy"]) == record["metrics"]["test"]["accuracy"]


def test_trainings_without_epochs(run):
    folder, record, _ = run("ZeroshotCLIP", name="zero")
    (row,) = rows(folder)
    assert row["stage"] == "final" and float(row["test/accuracy"]) == record["metrics"]["test"]["accuracy"]
    clap = ("CLAP", "TRAINER.CLAP.MAX_STEPS", 6, "TRAINER.CLAP.CHECK_EVERY", 3, "TRAINER.CLAP.BATCH_SIZE", 4)
    folder, record, _ = run(*clap, name="clap")
    *checks, last = rows(folder)
    assert [int(row["step"]) for row in checks] == [entry["step"] for entry in record["history"]] == [3, 6]
    assert [float(row["contrastive"]) for row in checks] == [entry["contrastive"] for entry in record["history"]]
    assert last["stage"] == "final"


def test_a_resumed_run_has_the_rows_of_an_undisturbed_one(run, monkeypatch):
    whole = rows(run(*COOP, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, name="whole")[0])
    from dassl_clip.trainers.coop import CoOp

    step, steps = CoOp.forward_backward, []

    def dies(self, batch):
        steps.append(self.epoch)
        if self.epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", dies)
    more = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    run(*COOP, *more, name="torn", code=130)
    monkeypatch.undo()
    folder, record, _ = run(*COOP, *more, name="torn")
    assert rows(folder) == whole and len(record["history"]) == 3
    run(*COOP, *more, name="torn")  # nothing is left to train; the test is taken again
    assert rows(folder) == whole


@pytest.mark.parametrize("content", [b"", b"\xff\x00 no text", b"stage,epoch\ntrain,1\ntrain,x\ntrain", b'"'])
def test_whatever_lay_there_is_replaced(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    log = metrics_log.MetricsLog(tmp_path)
    log.open(epochs=1)
    log.add_scalar("val/accuracy", 50.0, step=0)
    log.write_table([{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.2, "loss": 1.0}])
    log.close()
    assert path.read_text() == ("stage,epoch,step,lr,loss,val/accuracy\ntrain,1,,0.1,2.0,50.0\ntrain,2,,0.2,1.0,\n")
    for epochs, evaluations in {0: {}, 2: {1: {"val/accuracy": 50.0}, 2: {}}}.items():
        again = metrics_log.MetricsLog(tmp_path)
        again.open(epochs)
        again.close()
        assert again.evaluations == evaluations, "what was not finished is measured again"


def test_wandb_synchronises_tensorboard(run, started):
    folder, *_ = run(*COOP, "RUN.LOGGERS", "wandb")
    run(*COOP, "RUN.LOGGERS", "('wandb',)")
    first, second = started()
    assert first["project"] == "dassl-clip" and first["dir"] == str(folder) and first["resume"] == "allow"
    assert first["sync_tensorboard"] and first["files"] == [], "it begins before the first file"
    assert first["name"].endswith(f"{folder.parent.name}/run") and not first["name"].startswith("/")
    assert first["config"]["TRAINER.COOP.N_CTX"] == 2 and first["config"]["OPTIM.LR"] == 0.01
    assert json.loads((folder / "loggers.json").read_text()) == {"wandb": first["id"]}
    assert first["id"] == second["id"], "a resumed run is the same run there"


def test_what_goes_to_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, record, _ = run(*COOP)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(len(losses))) and len(losses) >= 4
    assert losses[-1].value == pytest.approx(record["losses"]["loss"], rel=1e-6)
    assert [event.step for event in events.Scalars("val/accuracy")] == [0, 1]
    (tested,) = events.Scalars("test/accuracy")
    assert tested.value == pytest.approx(record["metrics"]["test"]["accuracy"], rel=1e-6)


def test_wandb_that_does_not_start_ends_the_run_at_once(run, started, monkeypatch):
    monkeypatch.setenv("FAILS", "init")
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb", code=2)
    assert record is None and "wandb could not be started (PermissionError: 403: not logged in)" in output.err


def test_wandb_that_fails_at_the_end_does_not(run, started, monkeypatch):
    monkeypatch.setenv("FAILS", "finish")
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb")
    assert record is not None and output.out.count("wandb was not notified") == 1


def test_nothing_is_imported_unasked(run, started):
    folder, *_ = run("LinearProbe")
    assert "wandb" not in sys.modules and started() == [] and not (folder / "loggers.json").exists()


def test_what_cannot_be_logged_to(run, tmp_path, monkeypatch):
    (tmp_path / "here" / "wandb").mkdir(parents=True)  # the folder that W&B makes, beside which runs are started
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb", code=2)
    assert record is None and output.err.count("\n") == 1
    assert "wandb, which is not installed: `pip install wandb`" in output.err
    *_, output = run("LinearProbe", "RUN.LOGGERS", "comet", code=2)
    assert "expected wandb" in output.err
    *_, output = run("LinearProbe", "RUN.LOGGERS", "(1,)", code=2)  # (row 8.1)
    assert output.err.startswith("error: RUN.LOGGERS is (1,); expected wandb")


def test_loggers_are_no_part_of_a_run():
    registry.register()
    plain, asked = default_config(), default_config()
    asked.RUN.LOGGERS = ("wandb",)
    assert plain.RUN.LOGGERS == () and config_hash(plain) == config_hash(asked)
