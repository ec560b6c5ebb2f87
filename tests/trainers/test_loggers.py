"""Where numbers go besides tensorboard.

Covers: the rows of `metrics.csv` against the record's history and metrics, with and without epochs, after a kill and a
resume (equal to an undisturbed run's, no row twice, whatever lay there), services that are asked for (every value, own
steps for each part, the resolved settings, the same id after a resume), a service that fails at the start or later,
that none is imported unasked, and the sentences for one that is unknown or not installed. Stand-ins for the packages
`wandb` and `mlflow` write down how they are called.
"""

import csv
import json
import sys

import pytest

from dassl_clip.cli import train
from dassl_clip.engine import metrics_log as loggers
from dassl_clip.engine.config import default_config
from dassl_clip.results.records import config_hash

WANDB = """
import json, os
PLACE = os.environ["LOGGED"]

def note(**call):
    with open(PLACE, "a") as file:
        file.write(json.dumps({"service": "wandb", **call}) + "\\n")

class Run:
    def define_metric(self, name, step_metric=None):
        note(call="define", name=name, step=step_metric)
    def log(self, values):
        if os.environ.get("FAILS") == "log":
            raise ConnectionError("the network is gone")
        note(call="log", values=values)
    def finish(self):
        note(call="finish")

def init(**given):
    if os.environ.get("FAILS") == "init":
        raise PermissionError("403:\\n not logged in")
    note(call="init", **given)
    return Run()
"""
MLFLOW = """
import json, os
from types import SimpleNamespace
PLACE = os.environ["LOGGED"]

def note(**call):
    with open(PLACE, "a") as file:
        file.write(json.dumps({"service": "mlflow", **call}) + "\\n")

def start_run(run_id=None, run_name=None):
    note(call="start", id=run_id, name=run_name)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "m-1"))

def log_params(values):
    assert len(values) <= 100 and all(len(value) <= 500 for value in values.values())
    note(call="params", values=values)

def log_metric(tag, value, step=None):
    note(call="log", tag=tag, value=value, step=step)

def end_run():
    note(call="finish")
"""
COOP = ("CoOp", "TRAINER.COOP.N_CTX", 2, "TEST.FINAL_MODEL", "best_val")


@pytest.fixture
def services(tmp_path, monkeypatch):
    """Packages `wandb` and `mlflow` on the path; gives a function that reads the calls of one of them."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "wandb.py").write_text(WANDB)
    (place / "mlflow.py").write_text(MLFLOW)
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("LOGGED", str(log))
    monkeypatch.syspath_prepend(str(place))
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def calls(service, kind=None):
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if line["service"] == service and kind in (None, line["call"])]

    yield calls
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


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
    table = loggers.MetricsTable(path, epochs=1)
    table.evaluations[1] = {"val/accuracy": 50.0}
    table.write([{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.2, "loss": 1.0}])
    assert path.read_text() == ("stage,epoch,step,lr,loss,val/accuracy\ntrain,1,,0.1,2.0,50.0\ntrain,2,,0.2,1.0,\n")
    again = loggers.MetricsTable(path, epochs=0)
    assert again.evaluations == {}, "what was not finished is measured again"
    assert loggers.MetricsTable(path, epochs=2).evaluations == {1: {"val/accuracy": 50.0}, 2: {}}


def test_services_get_every_value(run, services):
    folder, record, _ = run(*COOP, "RUN.LOGGERS", "wandb,mlflow")
    (begun,) = services("wandb", "init")
    assert begun["project"] == "dassl-clip" and begun["dir"] == str(folder) and begun["resume"] == "allow"
    assert begun["name"].endswith(f"{folder.parent.name}/run") and not begun["name"].startswith("/")
    assert begun["config"]["TRAINER.COOP.N_CTX"] == 2 and begun["config"]["OPTIM.LR"] == 0.01
    assert {call["name"]: call["step"] for call in services("wandb", "define")} == {
        f"{part}/*": f"{part}/step" for part in ("train", "val", "test")
    }
    logged = [call["values"] for call in services("wandb", "log")]
    losses = [(values["train/step"], values["train/loss"]) for values in logged if "train/loss" in values]
    assert [step for step, _ in losses] == list(range(len(losses))) and len(losses) >= 4
    assert [v["val/step"] for v in logged if "val/accuracy" in v] == [0, 1]
    (tested,) = [values for values in logged if "test/accuracy" in values]
    assert tested["test/accuracy"] == record["metrics"]["test"]["accuracy"]
    other = [(call["tag"], call["value"], call["step"]) for call in services("mlflow", "log")]
    mine = [(tag, value, values[f"{tag.split('/')[0]}/step"]) for values in logged
            for tag, value in values.items() if not tag.endswith("/step")]  # fmt: skip
    assert other == mine
    params = {key: value for call in services("mlflow", "params") for key, value in call["values"].items()}
    assert params["TRAINER.COOP.N_CTX"] == "2" and len(params) == len(begun["config"])
    assert services("wandb")[-1]["call"] == services("mlflow")[-1]["call"] == "finish"
    assert json.loads((folder / "loggers.json").read_text()) == {"wandb": begun["id"], "mlflow": "m-1"}


def test_a_resumed_run_goes_on_under_its_id(run, services):
    run("LinearProbe", "RUN.LOGGERS", "('wandb', 'mlflow')")
    run("LinearProbe", "RUN.LOGGERS", "('wandb', 'mlflow')")
    first, second = services("wandb", "init")
    assert first["id"] == second["id"]
    assert [call["id"] for call in services("mlflow", "start")] == [None, "m-1"]
    told = [key for call in services("mlflow", "params") for key in call["values"]]
    assert len(told) == len(set(told)), "the settings are told once"


def test_a_service_that_does_not_start_ends_the_run_at_once(run, services, monkeypatch):
    monkeypatch.setenv("FAILS", "init")
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb", code=2)
    assert record is None and "wandb could not be started (PermissionError: 403: not logged in)" in output.err


def test_a_service_that_fails_later_does_not(run, services, monkeypatch):
    monkeypatch.setenv("FAILS", "log")
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb")
    assert record is not None and output.out.count("wandb no longer answers") == 1


def test_nothing_is_imported_unasked(run, services):
    folder, *_ = run("LinearProbe")
    assert "wandb" not in sys.modules and "mlflow" not in sys.modules
    assert services("wandb") == services("mlflow") == [] and not (folder / "loggers.json").exists()


def test_what_cannot_be_logged_to(run, tmp_path, monkeypatch):
    (tmp_path / "here" / "wandb").mkdir(parents=True)  # the folder that W&B makes, beside which runs are started
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    _, record, output = run("LinearProbe", "RUN.LOGGERS", "wandb", code=2)
    assert record is None and output.err.count("\n") == 1
    assert "wandb, which is not installed: `pip install wandb`" in output.err
    *_, output = run("LinearProbe", "RUN.LOGGERS", "comet", code=2)
    assert "expected any of wandb, mlflow" in output.err
    *_, output = run("LinearProbe", "RUN.LOGGERS", "(1,)", code=2)  # (row 8.1)
    assert output.err.startswith("error: RUN.LOGGERS is (1,); expected any of wandb, mlflow")


def test_loggers_are_no_part_of_a_run():
    train.register()
    plain, asked = default_config(), default_config()
    asked.RUN.LOGGERS = ("wandb",)
    assert plain.RUN.LOGGERS == () and config_hash(plain) == config_hash(asked)
