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
        "metrics": {
            name: {"per_class_accuracy": list(values), "accuracy": float(np.mean([v for v in values if v is not None]))}
            for name, values in tests.items()
        }
    }


def classes(low, high, n=40):
    return np.linspace(low, high, n).tolist()


def test_gain_is_paired_over_classes_and_averaged_over_domains():
    records = [record([50, None, 20], [60, None, 20]), record([30, 40, 40], [30, 50, 70])]
    assert d.class_accuracies(records, d.ZEROSHOT).tolist() == [40, 40, 30]
    assert d.class_accuracies(records, d.IN_TEXTS).tolist() == [45, 50, 45]
    found = d.gain(records, d.IN_TEXTS)
    assert found.mean == pytest.approx(10) and found.low >= 5 and found.high <= 15
    same = d.gain([record(classes(20, 90), [x + 3 for x in classes(20, 90)])], d.IN_TEXTS)
    assert (same.mean, same.low, same.high) == pytest.approx((3, 3, 3))  # paired: the classes' own spread is no matter


def test_class_without_any_image_is_left_out():
    assert d.interval(np.array([1.0, np.nan, 3.0])).mean == 2


@pytest.mark.parametrize("shift, verdict", [(0.9, "some"), (1.1, "much"), (0, "little"), (-5, "little")])
def test_verdict_follows_the_interval(shift, verdict):
    records = [record(classes(20, 90), [x + shift for x in classes(20, 90)])]
    assert d.gain(records, d.IN_TEXTS).verdict == verdict
    lines = d.diagnosis(records, {"M": "style words in class names", "N": "the style of each image"})
    assert any(f"style words in class names: {verdict} to repair" in line and "(M)" in line for line in lines)
    assert d.summary(records) == (
        "little to repair" if verdict == "little" else f"{verdict} to repair: style words in class names"
    )


def test_a_gain_of_few_classes_is_not_called_much():
    texts = classes(20, 60)
    texts[0] += 80
    assert d.gain([record(classes(20, 60), texts)], d.IN_TEXTS).verdict == "little"


def test_nothing_is_claimed_at_chance():
    records = [record(classes(0, 5), [x + 10 for x in classes(0, 5)])]  # 40 classes: chance is 2.5 %
    assert d.at_chance(records) and "nothing can be said" in d.summary(records)
    lines = d.diagnosis(records, {})
    assert len(lines) == 2 and "nothing is claimed" in lines[1]
    assert not d.at_chance([record(classes(20, 60), classes(20, 60))])


def test_own_and_other_images_are_told_where_they_are_known():
    known = {d.OWN: [80.0] * 40, d.OTHER: [40.0] * 40, d.TIED: [56.0], d.TIED_BY_CHANCE: [25.0]}
    text = "\n".join(d.diagnosis([record(classes(20, 60), classes(20, 60), **known)], {}))
    assert "own style: 80.0 %" in text and "other styles: 40.0 %" in text and "56 %, by chance 25 %" in text
    assert "own style" not in "\n".join(d.diagnosis([record(classes(20, 60), classes(20, 60))], {}))
