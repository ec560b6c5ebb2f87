"""Settings that are searched: the points of a grid, their runs, and the choice on source validation images alone.

Covers `experiments/grid.py` and what `experiments/sweeps.py` and `experiments/tables.py` make of it. Records of the
points are planted with accuracies that the tests choose.
"""

import math

import pytest
import yaml

from dassl_clip.cli.__main__ import main
from dassl_clip.engine import registry
from dassl_clip.engine.fingerprint import config_facts
from dassl_clip.experiments import grid, plan, sweeps
from dassl_clip.results import records
from dassl_clip.results.errors import UserError

LR = "OPTIM.LR"
DRAWN = {"draws": 400, "seed": 3, LR: {"log-uniform": [1e-4, 1.0]}, "OPTIM.MOMENTUM": {"uniform": [0.0, 0.5]}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry.register()
    return tmp_path


def write(place, searched, **changes):
    rows = ["ZeroshotCLIP", {"method": "CoOp", "label": "searched", "grid": searched}]
    tree = {"task": "lodo", "datasets": ["icons"], "seeds": [1, 2], "shots": 2, "rows": rows}
    (place / "mine.yaml").write_text(yaml.safe_dump({**tree, **changes}))


def entries():
    return sweeps.expand(sweeps.read_sweep("mine.yaml"), plan.Request("", (), out="output"))


def plant(run, **accuracies):
    metrics = {
        split: {"accuracy": value, "error_rate": 100 - value, "macro_f1": 50.0, "total": 100, "correct": 5}
        for split, value in accuracies.items()
    }
    record = config_facts(run.config) | {
        "prompt": "a {}.", "backbone": {"name": "IconsCLIP", "weights_hash": "ab" * 32}, "num_train": 0, "losses": {},
        "metrics": metrics, "seconds": {"train": 1.0, "test": 1.0, "total": 2.0}, "peak_memory_mb": 1.0, "versions": {},
        "toolbox": {}, "device": "cpu", "precision": "fp32", "git_revision": "", "data_fingerprint": "", "command": "",
        "finished_at": "2024-01-01T00:00:00+00:00",
    }  # fmt: skip
    records.write_record(run.folder, record)


# -------------------------------------------------------------------------------------------------------------- points


def test_lists_are_combined():
    made = grid.points({LR: [0.1, 0.2], "OPTIM.NAME": ["sgd", "adam"], "TRAIN.X": [[1, 2]]}, "here")
    assert made == [
        ((LR, rate), ("OPTIM.NAME", name), ("TRAIN.X", "[1, 2]")) for rate in ("0.1", "0.2") for name in ("sgd", "adam")
    ]


def test_draws_are_seeded_and_follow_their_distribution():
    made = grid.points(DRAWN, "here")
    assert made == grid.points(DRAWN, "here") != grid.points({**DRAWN, "seed": 4}, "here")
    rates, momenta = ([float(dict(point)[key]) for point in made] for key in (LR, "OPTIM.MOMENTUM"))
    assert len(made) > 390 and all(1e-4 <= rate <= 1 for rate in rates) and all(0 <= m <= 0.5 for m in momenta)
    logs = [math.log10(rate) for rate in rates]  # uniform on [-4, 0]: mean -2, deviation 4 / sqrt(12)
    assert sum(logs) / len(logs) == pytest.approx(-2, abs=4 * 4 / math.sqrt(12 * len(logs)))
    assert sum(log < -3 for log in logs) / len(logs) == pytest.approx(0.25, abs=0.09)
    assert sum(momenta) / len(momenta) == pytest.approx(0.25, abs=4 * 0.5 / math.sqrt(12 * len(momenta)))
    few = grid.points({"draws": 50, LR: [0.1, 0.2]}, "here")
    assert sorted(few) == [((LR, "0.1"),), ((LR, "0.2"),)]  # each point once


@pytest.mark.parametrize(
    ("searched", "sentence"),
    [
        ({}, "`grid` should name config keys with their values"),
        ({LR: 0.1}, "OPTIM.LR should be a list of values, or with `draws` also {uniform"),
        ({LR: {"log-normal": [0, 1]}}, "or {log-uniform: [LOW, HIGH]}, not {'log-normal'"),
        ({"draws": 2, LR: {"log-uniform": [0, 1]}}, "log-uniform needs two numbers above 0, the smaller one first"),
        ({"draws": 2, LR: {"uniform": [1, 0]}}, "uniform needs two numbers, the smaller one first, not [1, 0]"),
        ({LR: {"uniform": [0, 1]}}, "OPTIM.LR has a distribution, so `grid` needs `draws`"),
        ({"draws": 0, LR: [1]}, "draws should be a whole number, at least 1, not 0"),
        ({"OPTIM.LRR": [1]}, "no config key 'OPTIM.LRR'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_grid_are_sentences(place, capsys, searched, sentence):
    write(place, searched)
    assert main(["sweep", "mine.yaml", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("changes", [{"task": "zeroshot"}, {"task": "batch"}, {"rows_method": "CoOp+InMaP"}])
def test_a_grid_needs_validation_images_that_are_not_tested(place, changes):
    method = changes.pop("rows_method", "CLAP")
    write(place, {}, rows=[{"method": method, "grid": {LR: [0.1, 0.2]}}], **changes)
    with pytest.raises(UserError, match=r"is ranked on validation images of the source|refines other runs|batch draws"):
        entries()


# ----------------------------------------------------------------------------------------------------------- the choice


def test_the_best_mean_wins_and_the_first_among_equals():
    assert grid.best([[50.0, 60.0], [56.0, 56.0], [55.0, 57.0]]) == 1
    assert grid.best([[50.0], [50.0]]) == 0


def test_points_are_chosen_for_each_target_by_validation_images_alone(place, capsys):
    write(place, {LR: [0.1, 0.2, 0.3]})
    made = entries()
    search = [entry for entry in made if entry.point]
    assert len(search) == 3 * 4 * 2 and len({entry.run.folder for entry in search}) == 24
    assert all(entry.run.config.TEST.SPLIT == "val" and entry.validation is None for entry in search)
    assert all(dict(entry.point)[LR] == str(entry.run.config.OPTIM.LR) for entry in search)

    wanted = {"emoji": "0.3", "flat": "0.1", "line": "0.2", "solid": "0.2"}

    def value(entry):  # the best in the mean over seeds, though another one is best for seed 1
        best, seed = dict(entry.point)[LR] == wanted[entry.column], entry.run.seed
        return (70.0 if seed == 1 else 90.0) if best else 75.0

    for entry in search[:-1]:
        plant(entry.run, val=value(entry))
    last = search[-1]
    targets = {entry.column for entry in entries() if entry.validation is not None}
    assert targets == set(wanted) - {last.column}  # the others have all their points
    plant(last.run, val=value(last))
    chosen = [entry for entry in entries() if entry.validation is not None]
    assert {(e.column, e.run.seed, str(e.run.config.OPTIM.LR), e.validation) for e in chosen} == {
        (target, seed, rate, 80.0) for target, rate in wanted.items() for seed in (1, 2)
    }
    assert all(entry.label == "searched" and entry.run.config.TEST.SPLIT == "test" for entry in chosen)
    for number, entry in enumerate(chosen):  # whatever the tests give, the choice stays
        plant(entry.run, test=10.0 + number)
    assert [entry.run.folder for entry in entries() if entry.validation is not None] == [e.run.folder for e in chosen]

    assert main(["table", "mine.yaml"]) == 0
    out = capsys.readouterr().out.replace("\n  ", " ")
    assert "searched, OPTIM.LR 0.2 (chosen for line, solid)" in out and "OPTIM.LR 0.3 (chosen for emoji)" in out
    assert "chosen for flat: searched, OPTIM.LR 0.1: 80.0 % on source validation images" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("searched  ")]
    by_target = {name: [10.0 + n for n, e in enumerate(chosen) if e.column == name] for name in sorted(wanted)}
    assert [float(cell) for cell in row[1::3]][:4] == [sum(v) / 2 for v in by_target.values()]


def test_a_search_whose_records_hold_test_numbers_is_refused(place):
    write(place, {LR: [0.1, 0.2]})
    for entry in entries():
        if entry.point:
            plant(entry.run, val=50.0, test=99.0)
    with pytest.raises(UserError, match="is a point of a grid, but its record has more than validation numbers"):
        entries()
