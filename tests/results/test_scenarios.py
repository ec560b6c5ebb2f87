"""Tables of batches, streams and orders from records made by hand: every figure from its closed form.

Covers `results/scenarios.py` and what `tables.py` says of such runs: means over domains and seeds, gains of the same
domain and seed, the worst cell, standard errors of means and of paired gains, shares of worse draws on equal lists
alone, times, what the lines above say, cases that do not apply in some domains, records without them, and
other columns.
"""

import copy
import statistics

import pytest

from dassl_clip.results.extra_tables import extra_test_tables
from dassl_clip.results.groups import group_records
from dassl_clip.results.protocols import protocol_of
from dassl_clip.results.scenarios import group_tables, has_scenarios, scenario_tables
from dassl_clip.results.trust import check_columns

from .conftest import make_record

CASES = ("B64", "B64 K1-4")
TRAINED = "; methods that train on labels train on the other domains"


def metrics(correct, images=4, index="a", **more):
    """Metrics of draws of as many images each."""
    each = [100 * hits / images for hits in correct]
    accuracy = statistics.fmean(each)
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    facts = {"correct": sum(correct), "total": images * len(correct), "draws": len(correct)}
    facts |= {"accuracy": accuracy, "error_rate": 100 - accuracy, "mean_of_draws": accuracy, "standard_error": error}
    return facts | {
        "correct_of_draws": correct, "images_of_draws": [images] * len(correct), "index_sha256": index, **more
    }  # fmt: skip


def record(method, domain, full, cases, seed=1, task="batch", needs="one image", missing=(), **changes):
    """A run of a task with hits of the draws of its cases."""
    run = make_record(method, domain, seed, full, task=task, num_train=0, data_protocol="all-images", **changes)
    for name, value in cases.items():
        run["metrics"][name] = value if isinstance(value, dict) else metrics(value)
    facts = {"task": task, "seed": seed, "cases": [*cases, *missing], "needs": needs, "block": 64}
    return run | {"scenarios": facts | {"not_applicable": dict.fromkeys(missing, "it cannot")}}


RUNS = [
    record("ZeroshotCLIP", "a", 60.0, {"B64": [1, 2, 3], "B64 K1-4": [4, 1, 1]}),
    record("ZeroshotCLIP", "b", 70.0, {"B64": [3, 2, 1], "B64 K1-4": [2, 2, 2]}),
    record("Other", "a", 61.0, {"B64": metrics([3, 2, 1], milliseconds=1.5), "B64 K1-4": [4, 2, 2]}, needs="a batch"),
    record(
        "Other",
        "b",
        69.0,
        {"B64": metrics([4, 3, 3], milliseconds=2.5), "B64 K1-4": metrics([0, 1, 1], milliseconds=249.7)},
        needs="a batch",
    ),
]


def shown(table):
    """First cell -> the others."""
    return {row[0]: row[1:] for row in table.rows}


def made(records, reference="ZeroshotCLIP", **options):
    (group,) = group_records(records)
    return scenario_tables(group, reference, **options)


def test_cells_are_means_over_domains_and_gains_those_of_the_same_domain():
    table, _ = made(RUNS)
    assert table.title == "PACS, task batch, test images: mean of 2 domains"
    assert table.columns == ["accuracy (%)", "full", *CASES, "worst cell"]
    rows = shown(table)
    assert list(rows) == ["ZeroshotCLIP (vit)", "Other (vit)", "gain of Other (vit)"]
    assert rows["ZeroshotCLIP (vit)"] == ["65.0", "50.0", "50.0", ""]
    # Other: (50, 83.3) and (66.7, 16.7); gains (0, +33.3) and (+16.7, -33.3)
    assert rows["Other (vit)"] == ["65.0", "66.7", "41.7", ""]
    assert rows["gain of Other (vit)"] == ["+0.0", "+16.7", "-8.3", "-33.3 (b, B64 K1-4)"]


def test_draws_have_standard_errors_of_means_and_of_paired_gains_and_shares_of_worse_ones():
    rows = shown(made(RUNS)[1])
    # Draw d shows the same classes in a and b, so its accuracies are not independent: 25, 50, 75 and 75, 50, 25.
    assert rows["standard error: ZeroshotCLIP (vit)"][0] == "0.0"
    means = [(100 + 50) / 2, (25 + 50) / 2, (25 + 50) / 2]  # B64 K1-4
    assert rows["standard error: ZeroshotCLIP (vit)"][1] == f"{statistics.stdev(means) / 3**0.5:.1f}"
    gains = [(50.0 + 25.0) / 2, (0.0 + 25.0) / 2, (-50.0 + 50.0) / 2]  # of Other, B64, in a and b
    assert rows["standard error of the gain: Other (vit)"][0] == f"{statistics.stdev(gains) / 3**0.5:.1f}"
    assert rows["worse: Other (vit)"] == [f"{100 / 6:.0f}", "50"]
    assert rows["ms: Other (vit)"] == ["2", "250"] and "ms: ZeroshotCLIP (vit)" not in rows


def test_seeds_are_independent_and_draws_of_another_number_have_no_error():
    again = [
        record(run["method"], run["target_domains"][0], 62.0, {"B64": hits}, seed=2)
        for run, hits in zip(RUNS, ([1, 1, 2], [4, 1, 1], [2, 3, 1], [2, 2, 2]))
    ]
    rows = shown(made([*RUNS, *again])[1])
    first, second = [37.5, 12.5, 0.0], [(25 - 50) / 2, (50 + 25) / 2, (-25 + 25) / 2]
    errors = [statistics.stdev(gains) / 3**0.5 for gains in (first, second)]
    assert rows["standard error of the gain: Other (vit)"][0] == f"{sum(e * e for e in errors) ** 0.5 / 2:.1f}"
    other = record("ZeroshotCLIP", "b", 70.0, {"B64": [3, 2, 1, 1]})
    assert shown(made([RUNS[0], other])[1])["standard error: ZeroshotCLIP (vit)"][0] == "-"


def test_the_share_of_losing_draws_is_a_column_to_choose():
    (group,) = group_records(RUNS)
    (table,) = group_tables(group, "ZeroshotCLIP", shown=check_columns(["losing"]))
    assert table.title == "PACS, task batch, test images: losing draws"
    assert table.columns == ["losing (%)", *CASES] and shown(table) == {"Other (vit)": [f"{100 / 6:.0f}", "50"]}
    assert table.above == ["losing: percent of the draws in which a method has fewer hits than ZeroshotCLIP (vit)"]
    (table,) = group_tables(group, shown=("losing",))
    assert table.above[0].endswith("than -; name the row to compare with by --reference")
    assert shown(table)["Other (vit)"] == ["-", "-"]
    plain = [make_record("ZeroshotCLIP"), make_record("Other")]
    (table,) = group_tables(group_records(plain)[0], "ZeroshotCLIP", shown=("losing",))
    assert shown(table) == {"Other (vit)": ["-"]} and table.above[0].endswith(
        "not tested in batches, streams or orders"
    )


def test_what_draws_differ_in_from_their_name_stands_below():
    runs = copy.deepcopy(RUNS)
    for run in runs[:3]:
        run["scenarios"]["notes"] = {"B64 K1-4": "3 classes occur", "B256": "does not apply"}
    assert made(runs)[0].below == ["B64 K1-4: 3 classes occur"]
    for run in (runs[1], runs[3]):
        run["scenarios"]["notes"] = {}
    assert made(runs)[0].below == ["B64 K1-4 (a): 3 classes occur"]


def test_draws_of_other_images_are_not_compared():
    other = record("Other", "b", 69.0, {"B64": metrics([0, 0, 0], index="b"), "B64 K1-4": [2, 2, 2]})
    rows = shown(made([*RUNS[:3], other])[1])
    assert rows["worse: Other (vit)"] == [f"{100 / 3:.0f}", "0"]  # of B64 the draws in a alone
    alone = shown(made([RUNS[1], other])[1])
    assert alone["worse: Other (vit)"] == ["-", "0"]
    assert alone["standard error of the gain: Other (vit)"] == ["-", "0.0"]


def test_seeds_have_mean_and_spread_and_a_cell_needs_every_domain():
    again = [record(run["method"], run["target_domains"][0], 62.0, {"B64": [1, 1, 2]}, seed=2) for run in RUNS[:3]]
    rows = shown(made([*RUNS, *again])[0])
    first, second = 50.0, 100 / 3
    cell = f"{(first + second) / 2:.1f} +/- {statistics.stdev([first, second]):.1f}"
    assert rows["ZeroshotCLIP (vit)"][1] == cell
    assert rows["Other (vit)"][1] == "66.7 (n=1)"  # its second seed lacks a domain
    assert rows["Other (vit)"][2] == "41.7 (n=1)"
    table, _ = made([*RUNS, *again])
    assert "missing: Other (vit): b (seed 2)" in table.below


def test_each_domain_has_its_tables_on_request_and_one_domain_no_worst_cell():
    titles = [table.title for table in made(RUNS, per_domain=True)]
    assert titles == [
        f"PACS, task batch, test images: {where}{more}"
        for where in ("a", "b", "mean of 2 domains")
        for more in ("", ": draws")
    ]
    first = made(RUNS, per_domain=True)[0]
    assert first.columns[-1] == "B64 K1-4" and shown(first)["gain of Other (vit)"] == ["+1.0", "+0.0", "+16.7"]
    (one, _) = made(RUNS, columns=["b"])
    assert shown(one)["Other (vit)"] == ["69.0", "83.3", "16.7"]
    assert made(RUNS, reference="")[0].columns[-1] == "B64 K1-4"  # nothing to be worse than


def test_the_lines_above_say_what_each_column_is_and_what_methods_need():
    table, draws = made(RUNS)
    text = "\n".join(table.above)
    assert "protocol: every image of a domain is tested, all at once and in random batches" in text
    assert "training images: none" in text and "full: all images of a target domain at once" in text
    assert "BN: 3 random draws of N images each, the same for all methods (seed 1)" in text
    assert "needs one image: ZeroshotCLIP (vit)" in table.above and "needs a batch: Other (vit)" in table.above
    assert "gains: over ZeroshotCLIP (vit), same domain and seed" in table.above
    assert draws.above[0] == "draws: 3 in each domain and seed"
    assert any(line.startswith("worse: percent of the draws in which a method has fewer hits") for line in draws.above)
    streams = [record("ZeroshotCLIP", "a", 60.0, {"stream 0.1": [2, 3]}, task="stream")]
    text = "\n".join(made(streams)[0].above)
    assert "stream G: 2 orders of all images" in text and "blocks of 64 images" in text
    orders = [record("ZeroshotCLIP", "a", 60.0, {"online": [2, 3, 1]}, task="online")]
    assert "online: 3 random orders of all images" in "\n".join(made(orders)[0].above)


def test_methods_that_were_trained_name_their_images():
    trained = record("CoOp", "a", 66.0, {"B64": [4, 4, 4]}) | {"num_train": 32}
    table, _ = made([RUNS[0], trained])
    assert "training images: none [ZeroshotCLIP (vit)]; 16 per class [CoOp (vit)]" in table.above[1]


def test_cases_that_do_not_apply_are_named_with_reason_and_domains():
    some = record("Other", "a", 61.0, {"B64": [1, 1, 1]}, missing=["B64 K1-4", "B256"])
    table, draws = made([*RUNS[:2], some, RUNS[3]])
    assert table.columns == ["accuracy (%)", "full", *CASES, "B256", "worst cell"]
    assert shown(table)["Other (vit)"][2:] == ["-", "-", ""]
    assert table.below == ["does not apply: Other (vit), B64 K1-4, B256 (a): it cannot"]
    assert shown(draws)["worse: Other (vit)"][1] == "100" and shown(draws)["worse: Other (vit)"][2] == "-"
    all_of_them = [record("Other", domain, 61.0, {"B64": [1, 1, 1]}, missing=["B256"]) for domain in "ab"]
    assert made([*RUNS[:2], *all_of_them])[0].below == ["does not apply: Other (vit), B256: it cannot"]


def test_they_are_no_extra_tests_and_other_runs_have_none():
    (group,) = group_records(RUNS)
    assert has_scenarios(group) and extra_test_tables([group]) == []
    more = RUNS[0] | {"metrics": RUNS[0]["metrics"] | {"C": RUNS[0]["metrics"]["test"]}}
    (table,) = extra_test_tables(group_records([more]))
    assert list(shown(table)) == ["C: ZeroshotCLIP (vit)"]
    (plain,) = group_records([make_record()])
    assert not has_scenarios(plain) and scenario_tables(plain) == []


@pytest.mark.parametrize(
    ("source", "target", "kind", "before", "after"),
    [
        (["a"], ["b"], "all-images", "every image of a domain", TRAINED),
        (["b"], ["b"], "all-images", "every image of a domain", ""),
        ([], [], "dassl", "the test part of the data set", ""),
    ],
)
def test_the_protocol_in_words(source, target, kind, before, after):
    phrase = f"{before} is tested, all at once and in streams, block by block{after}"
    assert protocol_of(source, target, "stream", kind) == phrase


def test_other_columns_are_of_the_whole_test_set():
    (group,) = group_records(copy.deepcopy(RUNS))
    for number, run in enumerate(group.records()):
        run["metrics"]["test"]["ece"] = 10.0 + number
    plain = scenario_tables(group, "ZeroshotCLIP")
    assert [t.rows for t in group_tables(group, "ZeroshotCLIP")] == [t.rows for t in plain]
    both = group_tables(group, "ZeroshotCLIP", shown=("accuracy", "worst", "ece"))
    assert [t.rows for t in both[2:]] == [t.rows for t in plain]
    assert (both[0].columns[-1], shown(both[0])["Other (vit)"]) == ("worst", ["61.0", "69.0", "65.0", "61.0"])
    assert (both[1].columns[0], shown(both[1])["Other (vit)"]) == ("ECE (%)", ["12.0", "13.0", "12.5"])
    assert all("cells: all images of a target domain at once" in t.above for t in both[:2])
    assert [t.columns[0] for t in group_tables(group, shown=("ece",))] == ["ECE (%)"]
    for run in group.records():
        del run["scenarios"]
    assert group_tables(group, "ZeroshotCLIP")[0].columns == ["accuracy (%)", "a", "b", "mean"]
