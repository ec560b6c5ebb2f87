"""Tables of extra tests: figures by hand, and CLAP's published measures from its published accuracies.

Covers `results/extra_tables.py`.
"""

import re
import statistics

import pytest

from dassl_clip.results import extra_tables
from dassl_clip.results.diagnosis import READ_OFF, TIED
from dassl_clip.results.groups import Row, group_records

from .conftest import make_record

# Published, CLAP's logs: CLIP ViT-B/16 zero-shot on PACS.
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLIP = {
    "C": (96.44, 98.85, 99.94, 87.71),
    "CP": (93.41, 99.02, 99.28, 89.16),
    "PC": (97.41, 99.06, 99.94, 88.09),
    "NC": (87.79, 95.35, 93.11, 87.05),
}


def record(domain, accuracies, method="ZeroshotCLIP", seed=1, **changes):
    """A run's record with extra tests of these accuracies."""
    facts = {"task": "zeroshot", "shots": -1, "num_train": 0, "source_domains": [], "selection_rule": "none"}
    return make_record(method, domain, seed, 50.0, accuracies, **facts | changes)


def shown(table):
    """First cell -> the others."""
    return {row[0]: row[1:] for row in table.rows}


def table_of(records, **options):
    (table,) = extra_tables.extra_test_tables(group_records(records), **options)
    return table


def test_the_published_measures_come_out_of_the_published_accuracies():
    runs = [record(d, {form: CLIP[form][i] for form in CLIP}) for i, d in enumerate(DOMAINS)]
    rows = shown(table_of(runs))
    assert [rows[f"{form}: ZeroshotCLIP (vit)"][-1] for form in CLIP] == ["95.7", "95.2", "96.1", "90.8"]
    last = {name: rows[f"{name}: ZeroshotCLIP (vit)"][-1] for name in ("R", "delta", "Delta_NC")}
    assert last == {"R": "0.9", "delta": "0.4", "Delta_NC": "4.9"}  # as the paper prints them
    means = {form: statistics.fmean(values) for form, values in CLIP.items()}
    exact = {
        name: round(combine(*(means[form] for form in needed)), 2)
        for name, (needed, combine) in extra_tables.MEASURES.items()
    }
    assert exact == {"R": 0.91, "delta": 0.37, "Delta_NC": 4.91}  # as they follow from the logs
    assert rows["R: ZeroshotCLIP (vit)"][:2] == ["4.0", "0.2"]
    assert rows["Delta_NC: ZeroshotCLIP (vit)"][:2] == [f"{96.44 - 87.79:.1f}", f"{98.85 - 95.35:.1f}"]


def test_shares_of_errors_are_no_accuracies_and_none_is_the_best():
    tests = {"zero-shot": 70.0, TIED: 31.0, READ_OFF: 24.0}
    table = table_of([record("a", tests), record("a", {name: value + 5 for name, value in tests.items()}, "InMaP")])
    assert table.columns[0] == "%"
    compared = {table.rows[number][0].partition(":")[0] for lines, _ in table.contests for number in lines}
    assert compared == {"zero-shot"}


def test_mean_and_spread_over_seeds_are_those_by_hand():
    values = {1: (60.0, 70.0), 2: (63.0, 74.0), 3: (58.0, 71.0)}
    forms = {form: shift for shift, form in enumerate(("C", "CP", "PC", "NC"))}
    runs = [
        record(d, {form: value - seed * shift for form, shift in forms.items()}, seed=seed)
        for seed, pair in values.items()
        for d, value in zip("ab", pair)
    ]
    rows = shown(table_of(runs))
    columns = [[pair[k] for pair in values.values()] for k in (0, 1)] + [[sum(p) / 2 for p in values.values()]]
    wanted = [f"{statistics.fmean(cell):.1f} +/- {statistics.stdev(cell):.1f}" for cell in columns]
    assert rows["C: ZeroshotCLIP (vit)"] == wanted
    spread = [2.0 * seed for seed in values]  # C - PC in every domain
    cell = f"{statistics.fmean(spread):.1f} +/- {statistics.stdev(spread):.1f}"
    assert rows["R: ZeroshotCLIP (vit)"] == [cell] * 3
    spread = [statistics.pstdev((0, seed, 2 * seed)) for seed in values]
    cell = f"{statistics.fmean(spread):.1f} +/- {statistics.stdev(spread):.1f}"
    assert rows["delta: ZeroshotCLIP (vit)"] == [cell] * 3
    one = shown(table_of(runs, seeds=(2,), columns=("b",)))
    assert one["C: ZeroshotCLIP (vit)"] == ["74.0", "74.0"] and one["Delta_NC: ZeroshotCLIP (vit)"] == ["6.0", "6.0"]


def test_extra_tests_that_some_runs_lack_leave_gaps_and_no_measure_of_their_own():
    four = {"C": 60.0, "CP": 61.0, "PC": 59.0, "NC": 50.0}
    runs = [record("a", four), record("b", {"C": 70.0}), record("a", {"FGSM / C": 5.0}, method="CLAP")]
    rows = shown(table_of(runs))
    assert rows["C: ZeroshotCLIP (vit)"] == ["60.0", "70.0", "65.0"]
    assert rows["CP: ZeroshotCLIP (vit)"] == ["61.0", "-", "-"]
    assert rows["R: ZeroshotCLIP (vit)"] == ["2.0", "-", "-"]
    assert rows["Delta_NC: ZeroshotCLIP (vit)"] == ["10.0", "-", "-"]
    assert rows["FGSM / C: CLAP (vit)"] == ["5.0", "-", "-"] and "R: CLAP (vit)" not in rows
    assert "C: CLAP (vit)" not in rows


def test_rows_stand_by_test_then_method_in_the_order_asked_for():
    runs = [record("a", {"1-shot": 1.0, "4-shot": 4.0}, method=name) for name in ("CLAP", "ZeroshotCLIP")]
    rows = [Row(name, "vit") for name in ("ZeroshotCLIP", "CLAP")]
    table = table_of(runs, rows=rows)
    assert [row[0] for row in table.rows] == [
        "1-shot: ZeroshotCLIP (vit)", "1-shot: CLAP (vit)", "4-shot: ZeroshotCLIP (vit)", "4-shot: CLAP (vit)",
    ]  # fmt: skip
    assert table.columns == ["accuracy (%)", "a", "mean"]
    assert [row[0] for row in table_of(runs, rows=rows[1:]).rows] == ["1-shot: CLAP (vit)", "4-shot: CLAP (vit)"]


def test_notes_and_what_was_transductive_stand_in_the_table():
    notes = ["NC: mean over 8 draws of the noise", "probes: tested on those that were not drawn"]
    runs = [record(d, {"C": 1.0}, reading_notes=notes) for d in "ab"]
    base = {"method": "CLAP", "config": "vit"}
    runs.append(record("a", {"text proxy": 3.0}, method="InMaP", transductive=True, refines=base))
    table = table_of(runs)
    assert table.below == [f"ZeroshotCLIP (vit): {note}" for note in notes]
    text = table.render()
    assert "PACS, task zeroshot, test images: extra tests" in text
    assert re.search(r"transductive .*: CLAP \+ InMaP \(vit\)$", text, re.MULTILINE)
    assert shown(table)["text proxy: CLAP + InMaP (vit)"] == ["3.0", "-", "-"]


def test_runs_without_extra_tests_make_no_table():
    plain = [record("a", {}), record("b", {})]
    assert extra_tables.extra_test_tables(group_records(plain)) == []
    both = group_records([*plain, record("a", {"C": 2.0}, dataset="VLCS", target_domains=["a"])])
    (table,) = extra_tables.extra_test_tables(both)
    assert table.title.startswith("VLCS")
    assert extra_tables.extra_test_tables(both, rows=[Row("Other", "")]) == []


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_both_formats_hold_every_figure(style):
    runs = [record(d, {form: CLIP[form][i] for form in CLIP}) for i, d in enumerate(DOMAINS)]
    text = table_of(runs).render(style)
    for values in CLIP.values():
        assert all(f"{value:.1f}" in text for value in values)
