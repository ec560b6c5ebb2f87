"""Intervals of differences between two rows, by the paired bootstrap over tested images.

Covers `results/intervals.py` and the saved predictions that it reads: the normal approximation of a paired difference
on many images, of several domains and seeds; a loop that draws images one by one, also with images that only some seeds
tested; identical rows; harmonic means; blocks of resamples; images matched by path in any order and any folder, and by
label; what gives no interval, and the line that says why; predictions with and without scores, and damaged ones.
"""

import numpy as np
import pytest

from dassl_clip.results import intervals, tables
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import Row, group_records
from dassl_clip.results.intervals import paired_bootstrap
from dassl_clip.results.predictions import read_predictions

from .conftest import make_record

CLASSES = 4


def counts(right, reference, shown=None):
    """`[N, S, 3]` of images that are right `[N, S]`."""
    shown = np.ones_like(right, dtype=int) if shown is None else shown.astype(int)
    return np.stack([shown, right * shown, reference * shown], axis=-1).astype(np.int64)


def test_many_images_agree_with_the_normal_approximation():
    """Var of a mean over domains of mean paired differences: sum of var(d) / N over the squared number of domains."""
    draw = np.random.default_rng(0)
    domains, variance, means = [], 0.0, []
    for images, (own, other) in {9000: (0.7, 0.65), 4000: (0.5, 0.52)}.items():
        hard = draw.random((images, 1))
        right = hard + 0.05 * draw.standard_normal((images, 1)) < own
        reference = hard + 0.05 * draw.standard_normal((images, 1)) < other
        domains.append(counts(right, reference))
        difference = 100 * (right.astype(float) - reference)
        means.append(difference.mean())
        variance += difference.var() / images / 4
    low, high = paired_bootstrap(domains)
    half = 1.959964 * variance**0.5
    assert (low, high) == pytest.approx((np.mean(means) - half, np.mean(means) + half), abs=0.12 * half)
    unpaired = sum(1e4 * (r.var() + q.var()) / len(r) / 4 for _, r, q in (np.moveaxis(d[:, 0], -1, 0) for d in domains))
    assert 1.959964 * unpaired**0.5 > 1.5 * half  # an interval that is not paired would be much wider


def test_seeds_share_the_images():
    """Three equal seeds are one seed, not three times as many images; independent ones add up."""
    draw = np.random.default_rng(1)
    right, reference = draw.random((2000, 3)) < 0.6, draw.random((2000, 3)) < 0.5
    one = paired_bootstrap([counts(right[:, :1], reference[:, :1])])
    same = paired_bootstrap([counts(right[:, [0, 0, 0]], reference[:, [0, 0, 0]])])
    assert same == pytest.approx(one)
    low, high = paired_bootstrap([counts(right, reference)])
    difference = 100 * (right.astype(float) - reference).mean(1)
    half = 1.959964 * difference.std() / 2000**0.5
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.12 * half)


@pytest.mark.parametrize("harmonic", [False, True])
def test_interval_is_that_of_a_loop_over_drawn_images(harmonic):
    """With images that only one of two seeds tested, as of a hold-out that the seed draws."""
    draw = np.random.default_rng(2)
    domains = []
    for images in (60, 35):
        shown = draw.random((images, 2)) < 0.7
        shown[:, 0] |= ~shown.any(1)
        domains.append(counts(draw.random((images, 2)) < 0.75, draw.random((images, 2)) < 0.6, shown))
    values = []
    for _ in range(4000):
        drawn = [[domain[i] for i in draw.integers(0, len(domain), len(domain))] for domain in domains]
        differences = []
        for seed in (0, 1):
            rows = [
                [100 * sum(x[seed, place] for x in images) / sum(x[seed, 0] for x in images) for images in drawn]
                for place in (1, 2)
            ]
            row, reference = (2 / (1 / a + 1 / b) if harmonic else (a + b) / 2 for a, b in rows)
            differences.append(row - reference)
        values.append(np.mean(differences))
    low, high = paired_bootstrap(domains, harmonic)
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.7)
    assert high - low > 7


def test_identical_rows_and_blocks(monkeypatch):
    draw = np.random.default_rng(3)
    right, other = draw.random((50, 2)) < 0.5, draw.random((50, 2)) < 0.5
    assert paired_bootstrap([counts(right, right)]) == (0, 0)
    assert paired_bootstrap([counts(np.ones((9, 1)), np.zeros((9, 1)))]) == (100, 100)
    assert paired_bootstrap([counts(np.zeros((9, 1)), np.zeros((9, 1)))], harmonic=True) == (0, 0)
    whole = paired_bootstrap([counts(right, other)])
    monkeypatch.setattr(intervals, "AT_ONCE", 100)
    assert paired_bootstrap([counts(right, other)]) == whole == paired_bootstrap([counts(right, other)])


# ----------------------------------------------------------------------------------------- records and predictions


class Runs:
    """Finished runs with predictions in folders below one."""

    def __init__(self, root):
        self.root, self.records = root, []

    def add(self, method, domain, seed, right, root="/data", order=None, labels=None, images=None, **changes):
        """A run whose images `0.png`, `1.png`, ... are right or not, and whose predictions stand in an order."""
        images = np.arange(len(right)) if images is None else images
        folder = self.root / f"{method}-{domain}-{seed}"
        folder.mkdir()
        right = np.asarray(right)
        order = np.arange(len(right)) if order is None else order
        labels = images % CLASSES if labels is None else labels
        top = np.stack([np.where(right, labels, (labels + 1) % CLASSES), (labels + 2) % CLASSES], axis=1)
        paths = np.array([f"{root}/{domain}/c{label}/{i}.png" for i, label in zip(images, labels, strict=True)])
        self.write(folder, paths=paths[order], labels=labels[order], top=top[order])
        metrics = {"accuracy": 100 * float(right.mean()), "error_rate": 100 - 100 * float(right.mean())}
        metrics |= {"total": len(right), "correct": int(right.sum())}
        self.records.append(make_record(method, domain, seed, **changes) | {"metrics": {"test": metrics}})
        self.records[-1]["folder"] = str(folder)
        return folder

    def write(self, folder, **arrays):
        shares = np.full(arrays["top"].shape, 0.3, dtype=np.float32)
        classnames = np.array([str(number) for number in range(CLASSES)])
        np.savez(folder / "predictions.npz", **{"shares": shares, "classnames": classnames, **arrays})

    def table(self, **options):
        (group,) = group_records(self.records)
        return tables.method_table(group, "ZeroshotCLIP", summaries=["interval"], **options)

    def interval(self, method="CoOp"):
        """The two ends as printed, and the line that says why there is none."""
        table = self.table()
        (cell,) = (row[-1] for row in table.rows if row[0] == f"gain of {method} (vit)")
        ends = None if cell == "-" else tuple(map(float, cell.strip("[]").split(", ")))
        return ends, [line for line in table.below if line.startswith("interval: ")]


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def test_the_column_holds_the_interval_of_the_gain(runs):
    """Two domains and seeds; the same numbers by hand, in the cells of gains alone."""
    draw = np.random.default_rng(5)
    right = {method: draw.random((2, 200, 2)) < share for method, share in (("ZeroshotCLIP", 0.6), ("CoOp", 0.7))}
    for method, images in right.items():
        for d, domain in enumerate(("art", "photo")):
            for seed in (1, 2):
                runs.add(method, domain, seed, images[d, :, seed - 1])
    table = runs.table()
    assert table.columns == ["accuracy (%)", "art", "photo", "mean", "interval"]
    expected = paired_bootstrap([counts(a, b) for a, b in zip(right["CoOp"], right["ZeroshotCLIP"], strict=True)])
    assert runs.interval() == (pytest.approx(expected, abs=0.0501), [])
    assert [row[-1] for row in table.rows[:2]] == ["", ""] and len(table.rows) == 3
    gain = 100 * float((right["CoOp"].astype(float) - right["ZeroshotCLIP"]).mean())
    assert table.rows[2][3].startswith(f"{gain:+.1f}") and expected[0] < gain < expected[1]
    assert any("95 % paired bootstrap interval of the gain in the mean" in line for line in table.above)
    (group,) = group_records(runs.records)
    without = tables.method_table(group, summaries=["interval"])
    assert [row[-1] for row in without.rows] == ["-", "-"] and "interval: no row to compare with" in without.below[0]


def test_images_are_matched_by_path_and_not_by_position(runs):
    draw = np.random.default_rng(6)
    right, order = draw.random(300) < 0.5, draw.permutation(300)
    runs.add("ZeroshotCLIP", "art", 1, right)
    runs.add("CoOp", "art", 1, right, order=order)  # by position they would differ
    runs.add("CLAP", "art", 1, right, root="/scratch/of/another/machine", order=order[::-1])
    assert (right != right[order]).any()
    assert runs.interval() == runs.interval("CLAP") == ((0, 0), [])


def test_seeds_may_have_tested_other_images(runs):
    """As of a hold-out that the seed draws: the images of both are drawn together, each with the seeds that it has."""
    draw = np.random.default_rng(8)
    images = {seed: np.sort(draw.permutation(120)[:70]) for seed in (1, 2)}
    expected = np.zeros((120, 2, 3), dtype=np.int64)
    for seed, own in images.items():
        both = draw.random((2, 70)) < [[0.5], [0.8]]
        runs.add("ZeroshotCLIP", "art", seed, both[0], images=own)
        runs.add("CoOp", "art", seed, both[1], images=own, order=draw.permutation(70))
        expected[own, seed - 1] = np.stack([np.ones(70), both[1], both[0]], axis=1)
    expected = expected[expected.any((1, 2))]
    low, high = paired_bootstrap([expected])
    assert runs.interval() == (pytest.approx((low, high), abs=0.35), [])  # images stand in another order there
    assert high - low > 10


def test_base_and_new_classes_have_the_harmonic_mean(runs):
    draw, shared = np.random.default_rng(9), {"task": "b2n", "source_domains": [], "target_domains": []}
    right = {"base": draw.random((2, 150)) < [[0.9], [0.5]], "new": draw.random((2, 150)) < [[0.2], [0.3]]}
    for subset, (own, reference) in right.items():
        runs.add("CoOp", subset, 1, own, **shared, class_subset=subset)
        runs.add("ZeroshotCLIP", subset, 1, reference, **shared, class_subset=subset)
    domains = [counts(own[:, None], reference[:, None]) for own, reference in right.values()]
    expected, plain = paired_bootstrap(domains, harmonic=True), paired_bootstrap(domains)
    assert runs.interval() == (pytest.approx(expected, abs=0.0501), []) and plain[0] > expected[0] + 5
    assert runs.table().columns[-2:] == ["HM", "interval"]


def test_other_images_or_labels_give_no_interval(runs):
    right = np.ones(8, dtype=bool)
    runs.add("ZeroshotCLIP", "art", 1, right)
    runs.add("CoOp", "art", 1, np.ones(7, dtype=bool))
    runs.add("CLAP", "art", 1, right, labels=np.array([0, 1, 2, 3, 0, 1, 2, 0]))
    ends, lines = runs.interval()
    assert ends is None and runs.interval("CLAP")[0] is None
    why = "art, seed 1: ZeroshotCLIP (vit) did not test the same images, with labels"
    assert f"interval: none for CoOp (vit): {why}: 1 are in one run only (such as /c3/7.png)" in lines
    assert any(line.startswith(f"interval: none for CLAP (vit): {why}: 2 are in one run only") for line in lines)


def test_runs_without_their_predictions_say_so(runs):
    right = np.ones(8, dtype=bool)
    base = runs.add("ZeroshotCLIP", "art", 1, right)
    gone, cut, other = (runs.add(method, "art", 1, right) for method in ("CoOp", "CLAP", "GOPro"))
    fine = runs.add("InMaP", "art", 1, right)
    (gone / "predictions.npz").unlink()
    (cut / "predictions.npz").write_bytes((fine / "predictions.npz").read_bytes()[:300])
    runs.write(other, paths=np.array(["a", "b"]), labels=np.zeros(2, int), top=np.zeros((2, 2), int))
    lines = dict(line.removeprefix("interval: none for ").split(": ", 1) for line in runs.interval()[1])
    assert runs.interval("InMaP")[0] == (0, 0)
    assert lines["CoOp (vit)"].startswith(f"{gone} has no predictions.npz")
    assert lines["CLAP (vit)"].startswith(f"{cut / 'predictions.npz'} is damaged")
    assert lines["GOPro (vit)"] == (
        f"{other / 'predictions.npz'} has 100.00 % of 2 images right, but the record 100.00 % of 8: they are not of "
        "one test; run it again"
    )
    (base / "predictions.npz").unlink()
    assert runs.interval("InMaP")[0] is None
    (line,) = (line for line in runs.interval()[1] if f"{base} has no predictions.npz" in line)
    assert "InMaP (vit)" in line


def test_accuracies_that_are_not_of_the_predictions_give_no_interval(runs):
    runs.add("ZeroshotCLIP", "art", 1, np.ones(8, dtype=bool))
    runs.add("CoOp", "art", 1, np.ones(8, dtype=bool))
    runs.records[-1]["metrics"]["test"] |= {"accuracy": 75.0}
    (line,) = runs.interval()[1]
    assert "100.00 % of 8 images right, but the record 75.00 % of 8" in line


def test_seeds_and_splits_that_cannot_be_paired(runs):
    right = np.ones(8, dtype=bool)
    runs.add("ZeroshotCLIP", "art", 1, right)
    runs.add("CoOp", "art", 2, right)
    assert runs.interval() == (None, [
        "interval: none for CoOp (vit): no seed has every domain both here and in ZeroshotCLIP (vit)"
    ])  # fmt: skip
    for record in runs.records:
        record["metrics"]["val"] = record["metrics"]["test"]
    (group,) = group_records(runs.records, "val")
    below = tables.method_table(group, "ZeroshotCLIP", summaries=["interval"]).below
    assert "interval: none for CoOp (vit): predictions are kept of test images only, not of val images" in below


def test_an_image_that_is_tested_twice_is_one_image(runs):
    """Drawn together: the interval is that of four images, each of which counts twice."""
    labels, paths = np.zeros(8, int), np.array([f"/d/art/{i}.png" for i in (0, 0, 1, 1, 2, 2, 3, 3)])
    for method, right in (("ZeroshotCLIP", [1, 1, 0, 0, 0, 0, 1, 1]), ("CoOp", [1, 1, 1, 1, 0, 1, 0, 1])):
        folder = runs.add(method, "art", 1, np.array(right, dtype=bool), labels=labels)
        best = np.where(np.array(right) == 1, labels, 1)
        runs.write(folder, paths=paths, labels=labels, top=np.stack([best, best + 1], axis=1))
    by_hand = np.array([[[2, 2, 2]], [[2, 2, 0]], [[2, 1, 0]], [[2, 1, 2]]])
    assert runs.interval()[0] == pytest.approx(paired_bootstrap([by_hand]), abs=0.0501)


def test_rows_can_be_chosen(runs):
    for method in ("ZeroshotCLIP", "CoOp", "CLAP"):
        runs.add(method, "art", 1, np.ones(8, dtype=bool))
    table = runs.table(rows=[Row("CLAP", "vit")])
    assert [row[0] for row in table.rows] == ["CLAP (vit)", "gain of CLAP (vit)"] and table.rows[1][
        -1
    ] == "[+0.0, +0.0]"


def test_predictions_hold_scores_or_not(runs):
    folder = runs.add("CoOp", "art", 1, np.ones(8, dtype=bool))
    assert read_predictions(folder, scores=True).scores is None  # a file of before
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    scores = np.zeros((8, CLASSES), np.float16)
    runs.write(folder, **arrays, scores=scores)
    assert read_predictions(folder).scores is None
    assert np.array_equal(read_predictions(folder, scores=True).scores, scores)
    for wrong in (scores[:7], scores[:, :2], scores.astype(int), scores[0]):
        runs.write(folder, **arrays, scores=wrong)
        with pytest.raises(UserError, match=r"predictions.npz is damaged \(scores is \["):
            read_predictions(folder, scores=True)
