"""`--columns` of `dassl-clip compare`, `task` and `table`, on runs of two methods on the icons.

Covers: calibration in the records and tables against a loop over the saved scores; the interval against a loop over
drawn images of the saved predictions; the reference of `table` where none is named; columns that are refused, with
sweeps and `--per-method`; an old run beside new ones; what the methods cost.
"""

import contextlib
import io
import json
import shlex
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl_clip.cli import train
from dassl_clip.cli.__main__ import main
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import read_record, write_record

TARGETS = ("line", "solid")
COMPARE = ["compare", "icons", "--methods", "ZeroshotCLIP", "LinearProbe", "--tasks", "fewshot", "--shots", "2"]
COMPARE += ["--targets", *TARGETS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the four finished runs."""
    root = tmp_path_factory.mktemp("columns")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        planned = io.StringIO()
        with contextlib.redirect_stdout(planned):
            assert main([*COMPARE, "--dry-run"]) == 0
        for command in planned.getvalue().splitlines():  # in this process, which has torch already
            assert train.main(shlex.split(command.partition("train.py ")[2])) == 0
    return root


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture
def tables(capsys):
    """The JSON tables that a command prints, by metric, each with `rows`: row -> column -> cell."""

    def read(*words):
        assert main([*words, "--format", "json"]) == 0
        made = {table["cells"][0]["metric"]: table for table in json.loads(capsys.readouterr().out)}
        for table in made.values():
            table["rows"] = {}
            for cell in table["cells"]:
                table["rows"].setdefault(cell["row"], {})[cell["column"]] = cell
        return made

    return read


def runs(method):
    return [next(Path("output").glob(f"fewshot/icons/{method}/*/shots2/{target}/seed1")) for target in TARGETS]


def row(table, start):
    return next(cells for name, cells in table["rows"].items() if name.startswith(start))


def test_calibration_is_that_of_the_saved_scores(tables):
    made = tables("table", "output", "--columns", "ece", "brier", "nll", "accuracy", "top5")
    assert list(made) == ["ECE (%)", "Brier score", "NLL (nats)", "accuracy (%)", "top-5 accuracy (%)"]
    for method in ("ZeroshotCLIP", "LinearProbe"):
        errors = []
        for folder in runs(method):
            saved, metrics = read_predictions(folder, scores=True), read_record(folder)["metrics"]["test"]
            assert saved.scores.shape == (metrics["total"], len(saved.classnames)) and metrics["total"] > 200
            shares = np.exp(saved.scores.astype(np.float64))
            np.testing.assert_allclose(shares.sum(1), 1, atol=2e-3)
            np.testing.assert_allclose(np.take_along_axis(shares, saved.top, 1), saved.shares, atol=2e-3)
            truth = np.eye(shares.shape[1])[saved.labels]
            assert metrics["brier"] == pytest.approx(((shares - truth) ** 2).sum(1).mean(), abs=2e-3)
            picked = saved.scores[np.arange(len(shares)), saved.labels].astype(np.float64)
            assert metrics["nll"] == pytest.approx(-picked.mean(), abs=2e-3)
            right, gap = saved.top[:, 0] == saved.labels, 0.0
            for m in range(15):
                inside = (shares.max(1) > m / 15) & (shares.max(1) <= (m + 1) / 15)
                gap += abs((right[inside] - shares.max(1)[inside]).sum())
            assert metrics["ece"] == pytest.approx(100 * gap / len(right), abs=0.7)  # an image may change its bin
            errors.append(metrics["ece"])
        shown = row(made["ECE (%)"], method)
        assert [shown[target]["mean"] for target in TARGETS] == pytest.approx(errors)
        assert shown["mean"]["mean"] == pytest.approx(statistics.fmean(errors))


def drawn(method):
    """Right or not, by path, of each domain."""
    return [
        dict(zip(saved.paths.tolist(), (saved.top[:, 0] == saved.labels).tolist(), strict=True))
        for saved in map(read_predictions, runs(method))
    ]


def test_interval_is_that_of_a_loop_over_drawn_images(tables):
    table = tables("table", "output", "--columns", "worst", "interval")["accuracy (%)"]  # over zero-shot CLIP
    interval = row(table, "gain of LinearProbe")["interval"]
    low, high = interval["low"], interval["high"]
    pairs = [
        np.array([ours[path] - float(theirs[path]) for path in ours])
        for ours, theirs in zip(drawn("LinearProbe"), drawn("ZeroshotCLIP"), strict=True)
    ]
    draw = np.random.default_rng(11)
    values = [
        100 * np.mean([pair[draw.integers(0, len(pair), len(pair))].mean() for pair in pairs]) for _ in range(4000)
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.3)
    assert low < row(table, "gain of LinearProbe")["mean"]["mean"] < high and high - low > 0.5
    for method in ("ZeroshotCLIP", "LinearProbe"):
        shown = row(table, method)
        assert shown["worst"]["mean"] == min(shown[target]["mean"] for target in TARGETS) and "interval" not in shown
    assert not [note for note in table["notes"] if note.startswith("interval")]


def test_compare_and_task_take_columns(capsys):
    assert main([*COMPARE, "--columns", "accuracy", "ece,interval"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nICONS" if "\nICONS" in printed else "\nIcons") == 2
    header = next(line for line in printed.splitlines() if line.startswith("accuracy (%)"))
    assert header.split()[2:] == [*TARGETS, "mean", "interval"]
    assert any(line.startswith("ECE (%)") for line in printed.splitlines()) and "gain of LinearProbe" in printed
    words = ["task", "LinearProbe", "icons", "1", "--task", "fewshot", "--shots", "2", "--targets", *TARGETS]
    assert main([*words, "--columns", "interval", "nll"]) == 0
    printed = capsys.readouterr().out
    assert "NLL (nats)" in printed and "interval: no row to compare with" in printed
    assert main([*words, "--reference", "ZeroshotCLIP", "--columns", "interval"]) == 0
    printed = capsys.readouterr().out
    assert "no row to compare with" not in printed and "[" in printed


def test_cost_counts_what_is_learned_and_stands_below_the_accuracies_of_a_terminal(tables, capsys):
    assert main(["table", "output"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("accuracy (%)") < printed.index("Icons, task fewshot, test images: cost")
    assert main(["table", "output", "--format", "csv"]) == 0
    assert "learned parameters" not in capsys.readouterr().out
    (table,) = tables("table", "output", "--columns", "cost").values()
    shown, records = row(table, "cost of LinearProbe"), [read_record(folder) for folder in runs("LinearProbe")]
    weights = torch.load(next(runs("LinearProbe")[0].glob("*/model*.pth.tar*")), weights_only=False)["state_dict"]
    assert shown["learned parameters"]["mean"] == sum(value.numel() for value in weights.values())
    assert row(table, "cost of ZeroshotCLIP")["learned parameters"]["mean"] == 0
    for column, values in {
        "train (s)": [record["seconds"]["train"] for record in records],
        "test (s)": [record["seconds"]["test"] for record in records],
        "memory (MiB)": [record["peak_memory_mb"] for record in records],
    }.items():
        assert shown[column]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)


@pytest.mark.parametrize("words", [COMPARE, ["table", "output"], ["task", "CoOp", "icons", "1"]], ids=lambda w: w[0])
def test_unknown_columns_are_refused_first(words, capsys):
    assert main([*words, "--columns", "accuracy", "intervall"]) == 2
    assert capsys.readouterr().err == (
        "error: --columns: there is no column 'intervall'. Did you mean 'interval'? The columns are: accuracy, ece, "
        "brier, nll, top5, worst, interval, budget, cost, losing.\n"
    )


def test_what_a_check_found_stands_in_a_column(capsys, tmp_path):
    shutil.copytree("output", tmp_path / "output")
    for file in (tmp_path / "output").rglob("record.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"budget": ["training labels", "class names"]}))
    words = ["table", str(tmp_path / "output"), "--columns", "budget", "--rows", "LinearProbe"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "reads, by its check: training labels, class names [" in printed
    assert printed.count("training labels, class names") == 2  # in the header and the column
    assert main([*words, "--format", "json"]) == 0
    assert capsys.readouterr().out.count("training labels, class names") == 2


def test_columns_that_a_table_cannot_have(capsys, tables):
    assert main(["table", "clap-zeroshot", "--columns", "ece"]) == 2
    assert "--columns: the table clap-zeroshot is of accuracies" in capsys.readouterr().err
    assert main(["table", "output", "--per-method", "--columns", "ece", "worst"]) == 2
    assert "--per-method has a line for each domain, and no column worst" in capsys.readouterr().err
    assert main(["table", "output", "--per-method", "--columns", "ece", "--rows", "LinearProbe"]) == 0
    printed = capsys.readouterr().out
    error = read_record(runs("LinearProbe")[0])["metrics"]["test"]["ece"]
    assert printed.count("ECE (%)") == 1 and f"{error:.1f}" in printed


def test_a_run_of_before_stands_beside_new_ones(capsys, tmp_path, tables):
    """Without the new metrics, and with predictions that have no scores: the interval is there, the ECE is not."""
    for method in ("ZeroshotCLIP", "LinearProbe"):
        for folder in runs(method):
            new, record = tmp_path / folder, read_record(folder)
            new.mkdir(parents=True)
            with np.load(folder / "predictions.npz") as file:
                arrays = dict(file)
            if method == "ZeroshotCLIP":
                del arrays["scores"]
                record["metrics"]["test"] = {
                    key: value for key, value in record["metrics"]["test"].items() if key not in ("ece", "brier", "nll")
                }
            np.savez(new / "predictions.npz", **arrays)
            write_record(new, record)
    old = tables("table", str(tmp_path), "--columns", "accuracy", "interval", "ece")
    new = tables("table", "output", "--columns", "accuracy", "interval", "ece")
    assert old["accuracy (%)"]["rows"] == new["accuracy (%)"]["rows"]
    assert {(cell["mean"], cell["n"]) for cell in row(old["ECE (%)"], "ZeroshotCLIP").values()} == {(None, 0)}
    assert row(old["ECE (%)"], "LinearProbe") == row(new["ECE (%)"], "LinearProbe")
    (note,) = old["ECE (%)"]["notes"]
    assert note.startswith("ece: not recorded in runs before version 0.2, or of other trainers: ZeroshotCLIP (")
