"""Tables: every figure against a plain calculation over hand-made records; headers, gaps, broken records, formats.

Covers `results/tables.py`.
"""

import math
import random

import pytest

from dassl_clip.results import rendering, tables
from dassl_clip.results.groups import Row, check_rows, group_records

from .conftest import make_record

DOMAINS = ("art", "cartoon", "photo")
SEEDS = (1, 2, 3)


def figures(seed=0):
    """(method, domain, seed) -> accuracy."""
    draw = random.Random(seed)
    return {
        (method, domain, run): draw.uniform(40, 90)
        for method in ("GOPro", "CoOp", "ZeroshotCLIP")
        for domain in DOMAINS
        for run in SEEDS
    }


def group_of(values, **changes):
    groups = group_records([make_record(*key, value, **changes) for key, value in values.items()])
    assert len(groups) == 1
    return groups[0]


def parse(text):
    """`+1.2 +/- 0.3 (n=2)` -> 1.2, 0.3, 2."""
    n = int(text.split("(n=")[1].rstrip(")")) if "(n=" in text else None
    mean, _, spread = text.partition(" (n=")[0].partition(" +/- ")
    return float(mean), float(spread) if spread else None, n


def assert_cell(text, values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert parse(text)[:2] == (pytest.approx(mean, abs=0.0501), pytest.approx(spread, abs=0.0501))


def test_every_cell_mean_and_gain_equals_the_plain_calculation():
    values = figures()
    table = tables.method_table(group_of(values), reference="ZeroshotCLIP")
    assert table.columns == ["accuracy (%)", *DOMAINS, "mean"]
    rows = {row[0]: dict(zip(table.columns[1:], row[1:])) for row in table.rows}
    named = ["ZeroshotCLIP (vit)", "CoOp (vit)", "GOPro (vit)"]
    assert list(rows) == [*named, "gain of CoOp (vit)", "gain of GOPro (vit)"]
    for method in ("ZeroshotCLIP", "CoOp", "GOPro"):
        for domain in DOMAINS:
            assert_cell(rows[f"{method} (vit)"][domain], [values[method, domain, seed] for seed in SEEDS])
        means = [sum(values[method, domain, seed] for domain in DOMAINS) / 3 for seed in SEEDS]
        assert_cell(rows[f"{method} (vit)"]["mean"], means)
    for domain in DOMAINS:
        gains = [values["GOPro", domain, seed] - values["ZeroshotCLIP", domain, seed] for seed in SEEDS]
        assert_cell(rows["gain of GOPro (vit)"][domain], gains)
        assert rows["gain of GOPro (vit)"][domain][0] in "+-"
    assert not table.below


def test_domainbeds_error_takes_the_place_of_the_deviation_and_the_table_says_so():
    values = figures()
    plain = tables.method_table(group_of(values), reference="ZeroshotCLIP")
    table = plain.with_spread(rendering.ERROR)
    for before, after in zip(plain.rows, table.rows):
        for cell, other in zip(before[1:], after[1:]):
            (mean, deviation, _), (same, error, _) = parse(cell), parse(other)  # sqrt(2/3) / sqrt(3) as large
            assert mean == same and error == pytest.approx(deviation * 2**0.5 / 3, abs=0.08)
    cell = [values["GOPro", "photo", seed] for seed in SEEDS]
    mean = sum(cell) / 3
    error = math.sqrt(sum((value - mean) ** 2 for value in cell) / 3) / math.sqrt(3)
    (row,) = [row for row in table.records() if (row["row"], row["column"]) == ("GOPro (vit)", "photo")]
    assert row["error"] == pytest.approx(error, rel=1e-12) and "std" not in row
    assert any(line.endswith(f"cells: {rendering.ERROR.text}") for line in table.above)


def test_gaps_are_named_counted_and_never_bend_the_mean():
    values = figures()
    del values["GOPro", "photo", 2]
    for seed in SEEDS:
        del values["CoOp", "art", seed]
    table = tables.method_table(group_of(values), reference="ZeroshotCLIP")
    rows = {row[0]: dict(zip(table.columns[1:], row[1:])) for row in table.rows}
    assert_cell(rows["GOPro (vit)"]["photo"], [values["GOPro", "photo", seed] for seed in (1, 3)])
    assert parse(rows["GOPro (vit)"]["photo"])[2] == 2
    whole = [sum(values["GOPro", domain, seed] for domain in DOMAINS) / 3 for seed in (1, 3)]
    assert_cell(rows["GOPro (vit)"]["mean"], whole)
    assert (rows["CoOp (vit)"]["art"], rows["CoOp (vit)"]["mean"]) == ("-", "-")
    assert (rows["gain of CoOp (vit)"]["art"], rows["gain of CoOp (vit)"]["mean"]) == ("-", "-")
    pairs = [values["GOPro", "photo", seed] - values["ZeroshotCLIP", "photo", seed] for seed in (1, 3)]
    assert_cell(rows["gain of GOPro (vit)"]["photo"], pairs)
    assert table.below == ["missing: CoOp (vit): art (seed 1, 2, 3)", "missing: GOPro (vit): photo (seed 2)"]


def test_one_seed_has_no_spread():
    values = {key: value for key, value in figures().items() if key[2] == 1}
    table = tables.method_table(group_of(values))
    assert all("+/-" not in cell for row in table.rows for cell in row)
    assert not any("deviation" in line for line in table.above)


def test_header_says_what_was_measured():
    text = tables.method_table(group_of(figures()), reference="ZeroshotCLIP").render()
    for part in (
        "PACS, task lodo, test images",
        "leave one domain out",
        "16 per class",
        "RN50 (weights 0123456789ab)",
        "none [ZeroshotCLIP (vit)]; last [CoOp (vit), GOPro (vit)]",
        "prompt: a photo of a {}.",
        "seeds: 1, 2, 3; cells: mean +/- sample standard deviation over seeds",
        "gains: over ZeroshotCLIP (vit), same domain and seed",
    ):
        assert part in text, part
    assert "transductive" not in text
    assert "training images: all" in tables.method_table(group_of(figures(), shots=-1)).render()
    marked = tables.method_table(group_of({("CoOp", "art", 1): 50.0}, transductive=True)).render()
    assert "transductive (uses unlabelled test images): CoOp (vit)" in marked


def test_unlike_runs_never_share_a_table():
    alike = make_record("GOPro", "art", 1, 50.0)
    for changes in (
        {"task": "fewshot"},
        {"dataset": "VLCS"},
        {"shots": 4},
        {"class_subset": "base"},
        {"backbone": {"name": "RN101", "weights_hash": alike["backbone"]["weights_hash"]}},
        {"backbone": {"name": "RN50", "weights_hash": "ff"}},
    ):
        assert len(group_records([alike, {**alike, **changes}])) == 2, changes
    for changes in ({"seed": 2}, {"method": "CoOp"}, {"config": "other"}, {"target_domains": ["photo"]}):
        assert len(group_records([alike, {**alike, **changes}])) == 1, changes


def test_the_later_of_two_runs_of_one_cell_counts():
    old = make_record("GOPro", "art", 1, 50.0)
    new = make_record("GOPro", "art", 1, 60.0, finished_at="2024-01-02T00:00:00+00:00")
    for order in ([old, new], [new, old]):
        assert tables.method_table(group_records(order)[0]).rows == [["GOPro (vit)", "60.0", "60.0"]]


def test_target_table_lists_each_seed():
    values = figures()
    group = group_of(values)
    table = tables.target_table(group, Row("CoOp", "vit"))
    assert table.columns == ["target", "seed 1", "seed 2", "seed 3", "accuracy (%)"]
    assert [row[0] for row in table.rows] == [*DOMAINS, "mean"]
    for row in table.rows[:-1]:
        assert [float(cell) for cell in row[1:4]] == pytest.approx(
            [values["CoOp", row[0], seed] for seed in SEEDS], abs=0.0501
        )
        assert_cell(row[4], [values["CoOp", row[0], seed] for seed in SEEDS])
    one = tables.target_table(group_of({("CoOp", "art", 4): 51.25}), Row("CoOp", "vit"))
    assert (one.columns, one.rows) == (["target", "accuracy (%)"], [["art", "51.2"], ["mean", "51.2"]])


def test_rows_columns_and_seeds_can_be_chosen():
    values = figures()
    row = Row("GOPro", "vit")
    table = tables.method_table(group_of(values), rows=[row], columns=["photo", "art"], seeds=[2])
    expected = [values["GOPro", "photo", 2], values["GOPro", "art", 2]]
    assert table.columns[1:] == ["photo", "art", "mean"]
    assert [float(cell) for cell in table.rows[0][1:]] == pytest.approx([*expected, sum(expected) / 2], abs=0.0501)


def test_unknown_reference_and_format():
    group = group_of(figures())
    with pytest.raises(ValueError, match=r"--rows: no row 'CLAP'.* CoOp, CoOp \(vit\), GOPro, GOPro \(vit\), "):
        check_rows("--rows", ["CoOp", "CLAP"], [group])
    with pytest.raises(ValueError, match=r"unknown table format 'html'.*text, markdown"):
        tables.method_table(group).render("html")


def test_markdown_is_a_pipe_table():
    lines = tables.method_table(group_of(figures())).render("markdown").splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 5
    assert len({line.count("|") for line in body}) == 1
    assert "±" in body[-1] and "+/-" not in "".join(lines)


def test_rows_that_saw_other_images_are_named():
    found = [
        make_record("GOPro", "art", 1, 50.0, data_fingerprint="a"),
        make_record("CoOp", "art", 1, 50.0, data_fingerprint="b"),
        make_record("ZeroshotCLIP", "art", 1, 50.0, data_fingerprint="a"),
        make_record("GOPro", "photo", 1, 50.0, data_fingerprint="c"),
        make_record("CoOp", "photo", 1, 50.0, data_fingerprint="c"),
    ]
    below = tables.method_table(group_records(found)[0]).below
    assert "caution: art, seed 1: not the same images in CoOp (vit) and GOPro (vit), ZeroshotCLIP (vit)" in below
    assert not any("photo, seed 1: not the same" in line for line in below)


def test_no_change_is_plus_zero():
    assert rendering.cell_text([-0.04], 1, signed=True) == "+0.0"
    assert rendering.cell_text([-0.06], 1, signed=True) == "-0.1"


def with_data(record, test="t1", listing="l1", names="n1", drawn=False):
    """The record with what `RunData.facts` says of its images."""
    facts = {"fingerprint": f"{test}{listing}", "test": test * 8, "listing": listing, "names": names}
    facts |= {"drawn_tests": drawn, "counts": {"test": 1000, "train": 10}, "sampled": 256}
    return record | {"schema_version": 2, "data": facts, "data_fingerprint": facts["fingerprint"]}


def test_1_3_two_data_sets_of_one_name_have_two_tables():
    """Two `folder_domains` sets in one output folder: no mean over the domains of both."""
    found = [with_data(make_record("GOPro", domain, 1, 50.0), names="a") for domain in ("art", "photo")]
    found += [with_data(make_record("GOPro", domain, 1, 90.0), names="b") for domain in ("day", "night")]
    groups = group_records(found)
    assert [group.domains for group in groups] == [["art", "photo"], ["day", "night"]]


def test_1_3_seeds_on_other_images_are_not_averaged():
    """Seeds that ran before and after images were added, and images replaced under their names."""
    for change in ({"test": "t2", "listing": "l2"}, {"listing": "l2"}, {"test": "t2"}):
        found = [with_data(make_record("GOPro", "art", seed, 50.0 + seed)) for seed in (1, 2)]
        found.append(with_data(make_record("GOPro", "art", 3, 90.0), **change))
        first, second = group_records(found)
        assert list(first.accuracies(first.rows[0], "art")) == [1, 2]
        assert list(second.accuracies(second.rows[0], "art")) == [3]
        above = tables.method_table(second).above
        assert f"images: art: 1,000 test images {(change.get('test', 't1') * 8)[:8]}; runs on other images of PACS" in (
            "\n".join(above)
        )
    found = [with_data(make_record("GOPro", "art", seed, 50.0), test=f"t{seed}", drawn=True) for seed in (1, 2)]
    assert len(group_records(found)) == 1  # a hold-out that the seed draws
    assert not [line for line in tables.method_table(group_records(found)[0]).above if line.startswith("images")]


def test_old_records_say_that_their_data_are_not_recorded():
    old = make_record("GOPro", "art", 1, 50.0, data_fingerprint="a")
    new = with_data(make_record("GOPro", "art", 2, 60.0))
    groups = group_records([old, new])
    assert len(groups) == 2
    shown = ["data not recorded" in "\n".join(tables.method_table(group).above) for group in groups]
    assert sorted(shown) == [False, True]


def test_2_1_evaluations_are_not_pooled_with_trained_runs():
    """A checkpoint trained on Icons and tested on PACS stands in a table of its own, which says so."""
    trained = {"dataset": "Icons", "source_domains": ["line"], "shots": 16, "config": "icons", "class_subset": "all"}
    runs = [make_record("CoOp", "sketch", 1, 60.0), make_record("CoOp", "sketch", 1, 86.8, task="eval")]
    runs[1] |= {"evaluated_from": "somewhere", "trained": trained}
    for found in (runs, [runs[0], runs[1] | {"task": "lodo"}], [runs[0], runs[1] | {"trained": {}, "task": "lodo"}]):
        assert len(group_records(found)) == 2
    (group,) = (group for group in group_records(runs) if group.facts["trained_on"])
    text = tables.method_table(group).render()
    assert "trained on Icons/line (16 images per class, config icons); tested on PACS/sketch" in text
    assert "training images: none of this data set" in text and "leave one domain out" not in text


def test_2_1_an_evaluation_of_another_checkpoint_is_no_cell_of_a_transfer_task():
    """Base to new: the new classes are those of the run that was trained on the base classes of this data set."""
    trained = {"dataset": "DTD", "class_subset": "base", "source_domains": [], "shots": 16, "config": "vit"}
    shared = {"task": "b2n", "dataset": "DTD", "source_domains": [], "target_domains": []}
    base = make_record("CoOp", "art", 1, 80.0, **shared, class_subset="base")
    new = make_record("CoOp", "art", 1, 60.0, **shared, class_subset="new", evaluated_from="x", trained=trained)
    assert len(group_records([base, new])) == 1
    for other in ({"dataset": "Food101"}, {"class_subset": "all"}):
        assert len(group_records([base, new | {"trained": trained | other}])) == 2


def test_1_6_two_records_of_one_cell_that_differ_are_named():
    first = make_record("GOPro", "art", 1, 50.0) | {"folder": "a"}
    copy = first | {"folder": "b"}
    assert group_records([first, copy])[0].remarks == []
    edited = make_record("GOPro", "art", 1, 70.0, finished_at="2024-02-01T00:00:00+00:00") | {"folder": "b"}
    (group,) = group_records([edited, first])
    assert tables.method_table(group).below[-1] == (
        "caution: two records of one cell differ: GOPro (vit), art, seed 1: 50.0 (finished 2024-01-01T00:00:00+00:00, "
        "a) and 70.0 (finished 2024-02-01T00:00:00+00:00, b); the latter is shown"
    )
    assert tables.target_table(group, group.rows[0]).below == group.remarks
