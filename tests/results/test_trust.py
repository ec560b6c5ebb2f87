"""What tables show beside accuracy: calibration errors by a loop, and the tables of `--columns` from records by hand.

Covers `results/trust.py` and its use in `results/tables.py`: confidences on the edges of bins, numbers of bins; one
table per metric with decimals, means and spreads by hand; no gains of errors; the arithmetic mean of errors where
accuracies have the harmonic one; the worst domain of each seed and its gain; records without a metric,
and damaged ones; all formats; names of columns.
"""

import csv
import io
import json
import statistics

import numpy as np
import pytest

from dassl_clip.results import records, rendering, tables, trust
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import Row, group_records

from .conftest import make_record

DOMAINS, SEEDS = ("art", "cartoon", "photo"), (1, 2, 3)


def naive_error(confidence, right, bins):
    """Guo et al., equation 3: the bin m of M is ((m - 1) / M, m / M], and the first one holds 0 too."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, p in enumerate(confidence) if (m - 1) / bins < p <= m / bins or (m == 1 and p == 0)]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return 100 * total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop_on_edges_and_between(bins):
    draw = np.random.default_rng(bins)
    edges = np.array([m / bins for m in range(bins + 1)])  # 0 and 1.0 among them
    for confidence in (edges, np.repeat(edges, 7), draw.random(500), np.concatenate([edges, draw.random(90)])):
        right = draw.random(len(confidence)) < 0.4
        expected = naive_error(confidence.tolist(), right, bins)
        assert trust.calibration_error(confidence, right, bins) == pytest.approx(expected, abs=1e-9)
    above = np.nextafter(edges[1:-1], 1)  # a bin higher than the edge itself
    if bins > 1:
        right = np.ones(2 * len(above), dtype=bool)
        right[: len(above)] = False
        both = np.concatenate([edges[1:-1], above])
        assert trust.calibration_error(both, right, bins) == pytest.approx(naive_error(both.tolist(), right, bins))


def test_opposite_errors_of_one_bin_cancel_and_of_two_bins_do_not():
    right = np.array([True, False])
    assert trust.calibration_error(np.array([0.5, 0.5]), right) == pytest.approx(0)
    assert trust.calibration_error(np.array([0.4, 0.6]), right) == pytest.approx(60)


def with_metrics(method, domain, seed, values, **changes):
    """A record whose test metrics hold some values more."""
    record = make_record(method, domain, seed, values.get("accuracy", 50.0), **changes)
    record["metrics"]["test"] |= values
    return record


def drawn(keys, methods=("ZeroshotCLIP", "CoOp")):
    """(method, domain, seed) -> metric -> number."""
    draw = np.random.default_rng(7)
    return {
        (method, domain, seed): {key: float(draw.uniform(1, 90)) for key in keys}
        for method in methods
        for domain in DOMAINS
        for seed in SEEDS
    }


def rows_of(table):
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def text(values, digits):
    return f"{statistics.fmean(values):.{digits}f} +/- {statistics.stdev(values):.{digits}f}"


def test_one_table_for_each_metric_with_its_decimals():
    values = drawn(("accuracy", "ece", "brier", "nll", "top5_accuracy"))
    (group,) = group_records([with_metrics(*key, own) for key, own in values.items()])
    shown = ("ece", "accuracy", "brier", "nll", "top5")
    made = tables.metric_tables(group, "ZeroshotCLIP", shown=shown)
    titles = ["ECE (%)", "accuracy (%)", "Brier score", "NLL (nats)", "top-5 accuracy (%)"]
    assert [table.columns for table in made] == [[title, *DOMAINS, "mean"] for title in titles]
    for name, table in zip(shown, made, strict=True):
        key, digits = ("top5_accuracy" if name == "top5" else name), 3 if name in ("brier", "nll") else 1
        rows = rows_of(table)
        for domain in DOMAINS:
            own = [values["CoOp", domain, seed][key] for seed in SEEDS]
            assert rows["CoOp (vit)"][domain] == text(own, digits)
        means = [statistics.fmean(values["CoOp", domain, seed][key] for domain in DOMAINS) for seed in SEEDS]
        assert rows["CoOp (vit)"]["mean"] == text(means, digits)
        gains = "gain of CoOp (vit)" in rows
        assert gains == (name in ("accuracy", "top5")) == any(line.startswith("gains: over") for line in table.above)
    assert any(line.startswith("ECE: expected calibration error, 15 bins") for line in made[0].above)
    assert made[1].rows == tables.method_table(group, "ZeroshotCLIP").rows


def test_errors_of_base_and_new_classes_have_an_arithmetic_mean():
    shared = {"task": "b2n", "dataset": "DTD", "source_domains": [], "target_domains": []}
    found = [
        with_metrics("CoOp", "art", 1, {"accuracy": accuracy, "ece": ece}, **shared, class_subset=subset)
        for subset, accuracy, ece in (("base", 80.0, 2.0), ("new", 20.0, 6.0))
    ]
    (group,) = group_records(found)
    accuracy, ece = tables.metric_tables(group, shown=("accuracy", "ece", "worst"))
    assert (accuracy.columns[-2:], accuracy.rows[0][-2:]) == (["HM", "worst"], ["32.0", "20.0"])
    assert (ece.columns[-1], ece.rows[0][-1]) == ("mean", "4.0")


def test_the_worst_domain_is_that_of_each_seed():
    values = drawn(("accuracy",))
    del values["CoOp", "photo", 3]
    (group,) = group_records([with_metrics(*key, own) for key, own in values.items()])
    (table,) = tables.metric_tables(group, "ZeroshotCLIP", shown=("worst",))  # beside accuracies, asked for or not
    assert table.columns == ["accuracy (%)", *DOMAINS, "mean", "worst"]
    worst = {
        method: [min(values[method, domain, seed]["accuracy"] for domain in DOMAINS) for seed in SEEDS[:2]]
        for method in ("ZeroshotCLIP", "CoOp")
    }
    assert len({min(DOMAINS, key=lambda d: values["CoOp", d, seed]["accuracy"]) for seed in SEEDS[:2]}) > 1
    rows = rows_of(table)
    assert rows["CoOp (vit)"]["worst"] == f"{text(worst['CoOp'], 1)} (n=2)"
    gains = [own - other for own, other in zip(worst["CoOp"], worst["ZeroshotCLIP"], strict=True)]
    sign = "+" if statistics.fmean(gains) > 0 else ""
    assert rows["gain of CoOp (vit)"]["worst"] == f"{sign}{text(gains, 1)} (n=2)"
    assert "missing: CoOp (vit): photo (seed 3)" in table.below


def test_the_worst_target_of_a_transfer_is_none_of_its_source():
    shared = {"task": "xd", "source_dataset": "ImageNet", "target_domains": []}
    values = {"ImageNet": 10.0, "Food101": 60.0, "DTD": 40.0}
    found = [make_record("CoOp", "art", 1, value, **shared, dataset=name) for name, value in values.items()]
    (table,) = tables.metric_tables(group_records(found)[0], shown=("worst",))
    assert rows_of(table)["CoOp (vit)"] | {"worst": "40.0", "mean of targets": "50.0"} == rows_of(table)["CoOp (vit)"]


def test_records_without_a_metric_are_gaps_that_are_explained():
    new = drawn(("accuracy", "ece"), ("CoOp",))
    old = drawn(("accuracy",), ("ZeroshotCLIP",))
    del new["CoOp", "art", 2]["ece"]
    (group,) = group_records([with_metrics(*key, own) for key, own in (new | old).items()])
    accuracy, ece, top5 = tables.metric_tables(group, shown=("accuracy", "ece", "top5"))
    assert accuracy.below == []
    assert set(rows_of(ece)["ZeroshotCLIP (vit)"].values()) == {"-"}
    for column in ("art", "mean"):
        assert rows_of(ece)["CoOp (vit)"][column].endswith("(n=2)")
    assert ece.below == [
        "ece: not recorded in runs before version 0.2, or of other trainers: CoOp (vit), ZeroshotCLIP (vit)"
    ]
    assert top5.below == ["top5: not recorded in runs of other trainers: CoOp (vit), ZeroshotCLIP (vit)"]
    table = tables.target_table(group, Row("CoOp", "vit"), "ece")
    assert table.columns[-1] == "ECE (%)" and table.rows[0][:3] == ["art", f"{new['CoOp', 'art', 1]['ece']:.1f}", "-"]
    assert table.below[0].startswith("ece: not recorded in runs before")


@pytest.mark.parametrize("value", ["much", None, True, [1.0]])
def test_a_record_whose_calibration_is_no_number_is_refused(value):
    record = with_metrics("CoOp", "art", 1, {"ece": value})
    with pytest.raises(UserError, match=r"'metrics.test.ece' should be a number"):
        records.check_record(record)


def test_every_format_shows_the_columns():
    values = drawn(("accuracy", "brier"))
    (group,) = group_records([with_metrics(*key, own) for key, own in values.items()])
    accuracy, brier = tables.metric_tables(group, "ZeroshotCLIP", shown=("worst", "interval", "brier"))
    cell = rows_of(brier)["CoOp (vit)"]["mean"]
    assert cell in brier.render() and cell.replace("+/-", "±") in brier.render("markdown")
    assert cell.replace("+/-", "$\\pm$") in brier.render("latex")
    lines = {(line["row"], line["column"]): line for line in csv.DictReader(io.StringIO(brier.render("csv")))}
    mean, spread = map(float, cell.split(" +/- "))
    for line in (lines["CoOp (vit)", "mean"], json.loads(brier.render("json"))[0]["cells"][-1]):
        assert (float(line["mean"]), float(line["std"])) == pytest.approx((mean, spread), abs=5e-4)
    for style in rendering.FORMATS:
        assert "worst" in accuracy.render(style) and "interval" in accuracy.render(style)
    assert [row[-1] for row in accuracy.rows] == ["", "", "-"]  # these records have no predictions
    assert "interval: none for CoOp (vit): its record does not say in which folder the predictions lie" in (
        accuracy.below
    )


def test_names_of_columns():
    assert trust.check_columns(["ece,accuracy", "ece", "worst"]) == ("ece", "accuracy", "worst")
    with pytest.raises(UserError, match=r"no column 'Brir'. Did you mean 'brier'\? The columns are: accuracy, ece, "):
        trust.check_columns(["accuracy", "Brir"])
    with pytest.raises(UserError, match="--columns names no column; expected some of accuracy, "):
        trust.check_columns([","])
