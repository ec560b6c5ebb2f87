"""What a diagnosis says, on records made by hand.

Covers: gains and intervals against the definition, classes without images, verdicts at their limits, accuracies at
chance, and the summary.
"""

import numpy as np
import pytest

from dassl_clip.results import diagnosis as d

OTHER_TESTS = (d.IN_IMAGES, d.TRUE_WORD, d.WRONG_WORD, d.BALANCED, *d.FORMS)


def record(zeroshot, texts, **others):
    tests = {d.ZEROSHOT: zeroshot, d.IN_TEXTS: texts, **dict.fromkeys(OTHER_TESTS, zeroshot), **others}
    return {
        "target_domains": ["photo"],
        "metrics": {
            name: {
                "per_class_accuracy": list(values),
                "per_class_total": [0 if value is None else 10 for value in values],
                "accuracy": float(np.mean([v for v in values if v is not None])),
            }
            for name, values in tests.items()
        },
    }


def classes(low, high, n=40):
    return np.linspace(low, high, n).tolist()


def test_gain_is_a_paired_difference_of_accuracies():
    """The mean over domains of accuracies; classes without images do not count, and classes count by their images."""
    records = [record([50, None, 20], [60, None, 20]), record([30, 40, 40], [30, 50, 70])]
    assert d.gain(records, d.IN_TEXTS).mean == pytest.approx((5 + 40 / 3) / 2)
    records[0]["metrics"][d.IN_TEXTS]["per_class_total"] = [30, 0, 10]
    records[0]["metrics"][d.ZEROSHOT]["per_class_total"] = [30, 0, 10]
    assert d.gain(records, d.IN_TEXTS).mean == pytest.approx((100 * 3 / 40 + 40 / 3) / 2)
    same = d.gain([record(classes(20, 90), [x + 3 for x in classes(20, 90)])], d.IN_TEXTS)
    assert (same.mean, same.low, same.high) == pytest.approx((3, 3, 3))  # paired: the classes' own spread is no matter


def test_interval_is_that_of_a_loop_over_drawn_classes():
    draw = np.random.default_rng(4)
    total = draw.integers(1, 30, (3, 40)).astype(float)
    right = np.floor(total * draw.random((3, 40)))
    found, values = d.interval(right, total), []
    for _ in range(4000):
        drawn = draw.integers(0, 40, 40)
        values.append(100 * np.mean([right[r, drawn].sum() / total[r, drawn].sum() for r in range(3)]))
    assert found.mean == pytest.approx(100 * (right.sum(1) / total.sum(1)).mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.5)


@pytest.mark.parametrize("shift, verdict", [(0.9, "some"), (1.1, "much"), (0, "little"), (-5, "little")])
def test_verdict_follows_the_interval(shift, verdict):
    records = [record(classes(20, 90), [x + shift for x in classes(20, 90)])]
    assert d.gain(records, d.IN_TEXTS).verdict() == verdict
    lines = d.diagnosis(records, {"M": "style words in class names", "N": "the style of each image"})
    assert any(f"style words in class names: {verdict} to repair" in line and "(M)" in line for line in lines)
    assert d.summary(records) == (
        "little to repair" if verdict == "little" else f"{verdict} to repair: style words in class names"
    )


def test_a_gain_of_few_classes_is_not_called_much():
    texts = classes(20, 60)
    texts[0] += 80
    records = [record(classes(20, 60), texts)]
    assert d.gain(records, d.IN_TEXTS).verdict() == "unclear"
    assert d.summary(records) == "unclear, so few classes or images as there are: style words in class names"
    assert any("style words in class names: unclear, +2.0 [" in line for line in d.diagnosis(records, {}))


@pytest.mark.parametrize("low, mean, high, verdict", [
    (-10, 0, 10, "unclear"), (-9.9, 0, 10, "little"), (-1, 1.1, 3, "unclear"), (-1, 1, 3, "little"),
    (-30, -9, -1, "little"), (0.1, 15, 30, "some"),
])  # fmt: skip
def test_a_wide_interval_tells_nothing(low, mean, high, verdict):
    assert d.Gain(mean, low, high).verdict() == verdict


def test_nothing_is_claimed_at_chance():
    records = [record(classes(0, 5), [x + 10 for x in classes(0, 5)])]  # 40 classes: chance is 2.5 %
    assert d.at_chance(records) and "nothing can be said" in d.summary(records)
    lines = d.diagnosis(records, {})
    assert len(lines) == 2 and "nothing is claimed" in lines[1]
    assert not d.at_chance([record(classes(20, 60), classes(20, 60))])


@pytest.mark.parametrize("n, accuracy, claimed", [(2, 97, True), (2, 70, False), (3, 70, True), (3, 60, False)])
def test_few_classes_can_be_above_chance(n, accuracy, claimed):
    assert d.at_chance([record([accuracy] * n, [accuracy] * n)]) != claimed


def test_models_and_seeds_are_drawn_where_there_are_several():
    """Against a loop that draws classes, and then runs in groups."""
    draw = np.random.default_rng(5)
    total = draw.integers(1, 30, (6, 40)).astype(float)
    right = np.floor(total * draw.random((6, 40)) * np.array([0.2, 0.3, 0.5, 0.6, 0.9, 1.0])[:, None])
    groups, values = ["a", "a", "b", "b", "c", "c"], []
    for _ in range(4000):
        classes, runs = draw.integers(0, 40, 40), [2 * g + i for g in draw.integers(0, 3, 3) for i in (0, 1)]
        values.append(100 * np.mean([right[r, classes].sum() / total[r, classes].sum() for r in runs]))
    found, alone = d.interval(right, total, groups=groups), d.interval(right, total)
    assert found.mean == alone.mean == pytest.approx(100 * (right.sum(1) / total.sum(1)).mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1.5)
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert d.interval(right, total, groups=["a"] * 6) == alone


def with_styles(own, other):
    """Forty classes, of which in each of four domains ten are in their own style."""
    records = []
    for domain in range(4):
        is_own = [c % 4 == domain for c in range(40)]
        groups = {
            d.OWN: [own if mine else None for mine in is_own],
            d.OTHER: [None if mine else other for mine in is_own],
        }
        records.append(record(classes(20, 60), classes(20, 60), **groups, **{d.TIED: [56.0], d.TIED_BY_CHANCE: [25.0]}))
    return records


def test_images_in_other_styles_that_fall_behind_are_much_to_repair():
    records = with_styles(80.0, 40.0)
    text = "\n".join(d.diagnosis(records, {}))
    assert "own style: 80.0 %, images in other styles: 40.0 %, behind by +40.0 [+40.0, +40.0] points" in text
    assert "56 %, by chance 25 %" in text
    assert d.summary(records) == "much to repair: images in other styles than the class's own"
    assert d.summary(with_styles(43.0, 40.0)) == "some to repair: images in other styles than the class's own"
    assert d.summary(with_styles(40.0, 45.0)) == "little to repair"
    none = [record(classes(20, 60), classes(20, 60))]
    assert d.behind(none) is None and any(line.startswith("left out of images in") for line in d.diagnosis(none, {}))


def test_a_domain_that_is_no_class_own_style_is_left_out_and_named():
    records = with_styles(80.0, 40.0)
    del records[2]["metrics"][d.OWN]
    assert d.behind(records).mean == pytest.approx(40.0)
    text = "\n".join(d.diagnosis(records, {}))
    assert "left out of images in the class's own style: photo, the own style of no class or of all" in text
