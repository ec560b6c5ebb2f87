"""What the tests of styles say about a frozen CLIP on a data set: which methods have something to repair.

A gain is the difference of two accuracies, each a mean over domains; its interval is that of the bootstrap over classes
(paired, percentile), since classes are what another data set would have others of. Accuracies at chance say nothing
about styles, and then nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ZEROSHOT = "zero-shot"
OWN, OTHER = "images in the class's own style", "images in other styles"
TIED, TIED_BY_CHANCE = "errors on other styles that fall on classes of that style", "the same by chance"
READ_OFF = "classes whose own style can be read off their names' features"
IN_TEXTS, IN_IMAGES = "style words projected out of the texts", "style words projected out of the images"
TRUE_WORD, WRONG_WORD = "prompt with the style word of the images", "prompt with a wrong style word"
OWN_WORD = "prompt with the class's own style word"
BALANCED = "scores balanced over classes"
FORMS = {"C": "{}", "CP": "a {} in a photo", "PC": "a photo of a {}"}  # of the prompt (Cai et al., ECCV 2024, Table 3)
TESTS = (ZEROSHOT, OWN, OTHER, TIED, TIED_BY_CHANCE, READ_OFF, IN_TEXTS, IN_IMAGES, TRUE_WORD, WRONG_WORD, OWN_WORD,
         BALANCED, *FORMS)  # fmt: skip
REPAIRS = {  # what a method can repair: the test that shows it
    "style words in class names": IN_TEXTS,
    "classes that take too many images": BALANCED,
    "the style of each image": TRUE_WORD,
}
ASSUMED = {BALANCED: ", were all classes equally frequent"}
DRAWS, SEED = 2000, 0
MUCH, MUCH_BEHIND = 1.0, 5.0  # points: of a gain, and of other styles behind the class's own
WIDE = 20.0  # points: an interval that tells nothing
BEHIND = "images in other styles than the class's own"


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies in points, or an accuracy, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def verdict(self, much: float = MUCH) -> str:
        """`much` where the whole interval lies above so many points, `some` where it lies above zero.

        Else `little`, but `unclear` where the mean lies above `much`, or an interval that reaches above zero is `WIDE`
        points wide.
        """
        if self.low > 0:
            return "much" if self.low > much else "some"
        wide = self.high > 0 and self.high - self.low >= WIDE
        return "unclear" if self.mean > much or wide else "little"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


Counts = tuple[np.ndarray, np.ndarray]  # right and all images, [R, C] each: of R runs and C classes


def interval(
    right: np.ndarray, total: np.ndarray, minus: Counts | None = None, groups: Sequence[Hashable] = ()
) -> Gain:
    """A mean over runs of accuracies (or of differences of them) in percent, with its interval.

    Classes are drawn, and where runs are of several groups (models and seeds), groups too.

    Args:
        right: images that were classified rightly, `[R, C]` (or differences of such counts).
        total: all images, `[R, C]`.
        minus: the same of other images, whose accuracy is subtracted in each run.
        groups: the group of each run; (): all are of one.
    """
    rng = np.random.default_rng(SEED)
    weights = _drawn(right.shape[1], rng)
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))} or {None: 0}
    times = _drawn(len(number), rng)[[number[group] for group in groups] or [0] * len(right)]

    def accuracy(right: np.ndarray, total: np.ndarray) -> np.ndarray:
        images = total @ weights
        return np.where(images > 0, right @ weights / np.maximum(images, 1), np.nan)

    shares = accuracy(right, total) - (accuracy(*minus) if minus is not None else 0)
    with np.errstate(invalid="ignore"):  # draws without an image
        values = 100 * np.nansum(times * shares, axis=0) / np.where(np.isnan(shares), 0, times).sum(axis=0)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Gain(float(values[0]), float(low), float(high))


def _drawn(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `n` is in each draw of the bootstrap, `[n, 1 + DRAWS]`; in the first column once each."""
    times: np.ndarray = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), DRAWS)]).T
    return times


def counts(records: Sequence[Mapping[str, Any]], test: str) -> Counts:
    """Right and all images of a test by run and class."""
    metrics = [record["metrics"][test] for record in records]
    total = np.array([each["per_class_total"] for each in metrics], dtype=float)
    accuracy = np.array([[0 if x is None else x for x in each["per_class_accuracy"]] for each in metrics], dtype=float)
    return accuracy * total / 100, total


def gain(records: Sequence[Mapping[str, Any]], test: str) -> Gain:
    """The paired gain of a test over zero-shot on the same images."""
    right, total = counts(records, test)
    return interval(right - counts(records, ZEROSHOT)[0], total)


def _has_both(record: Mapping[str, Any]) -> bool:
    """Whether a domain has images in the class's own style and in others."""
    return OWN in record["metrics"] and OTHER in record["metrics"]


def behind(records: Sequence[Mapping[str, Any]]) -> Gain | None:
    """How far images in other styles are behind those in the class's own, in the domains that have both; None: none."""
    both = [record for record in records if _has_both(record)]
    return interval(*counts(both, OWN), minus=counts(both, OTHER)) if both else None


def at_chance(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether zero-shot accuracy is not clearly above twice that of guessing, or half way from there to 100 %."""
    right, total = counts(records, ZEROSHOT)
    chance = 100 / right.shape[1]
    return bool(interval(right, total).low <= min(2 * chance, (100 + chance) / 2))


def mean_of(records: Sequence[Mapping[str, Any]], test: str) -> float | None:
    """A test's figure (percent), the mean over the records; None where one lacks it."""
    values = [record["metrics"].get(test, {}).get("accuracy") for record in records]
    return None if None in values else float(np.mean(values))


def diagnosis(records: Sequence[Mapping[str, Any]], repairs: Mapping[str, str]) -> list[str]:
    """The lines of a diagnosis.

    Args:
        records: one for each domain, of a run with the tests of styles.
        repairs: what each method can repair, a key of `REPAIRS`.
    """
    right, total = counts(records, ZEROSHOT)
    chance, accuracy = 100 / right.shape[1], interval(right, total)
    lines = [f"zero-shot: {accuracy.mean:.1f} % [{accuracy.low:.1f}, {accuracy.high:.1f}]; chance {chance:.1f} %"]
    if at_chance(records):
        return [*lines, "not clearly above chance: these accuracies say nothing about styles, so nothing is claimed"]
    for test in (IN_TEXTS, IN_IMAGES, TRUE_WORD, WRONG_WORD, OWN_WORD, BALANCED):
        if mean_of(records, test) is not None:
            lines.append(f"{test}: {gain(records, test)} points{ASSUMED.get(test, '')}")
    fallen, both = behind(records), [record for record in records if _has_both(record)]
    if fallen is not None:
        own, other = mean_of(both, OWN), mean_of(both, OTHER)
        lines.append(f"{OWN}: {own:.1f} %, {OTHER}: {other:.1f} %, behind by {fallen} points")
        tied, by_chance = mean_of(both, TIED), mean_of(both, TIED_BY_CHANCE)
        if tied is not None and by_chance is not None:
            lines.append(f"{TIED}: {tied:.0f} %, by chance {by_chance:.0f} %")
    if lacking := [record["target_domains"][0] for record in records if not _has_both(record)]:
        lines.append(f"left out of {OWN}: {', '.join(lacking)}, the own style of no class or of all")
    read_off = mean_of(records, READ_OFF)
    if read_off is not None:
        lines.append(f"{READ_OFF}: {read_off:.0f} %")
    forms = [mean_of(records, form) or 0.0 for form in FORMS]
    lines += [
        f"prompt forms {', '.join(FORMS)}: within {max(forms) - min(forms):.1f} points (they share the class names, so "
        "this does not show whether names are tied to styles)",
        "",
    ]
    found = {what: gain(records, test) for what, test in REPAIRS.items()}
    for what, points in found.items():
        methods = ", ".join(name for name, repaired in repairs.items() if repaired == what)
        verdict = points.verdict()
        said = verdict if verdict == "unclear" else f"{verdict} to repair"
        lines.append(
            f"{what}: {said}, {points} points{ASSUMED.get(REPAIRS[what], '')}" + f" ({methods})" * bool(methods)
        )
    return lines


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """One line: the largest of the verdicts, or that nothing can be said."""
    if at_chance(records):
        return "nothing can be said: zero-shot accuracy is not clearly above chance"
    verdicts = {what: gain(records, test).verdict() for what, test in REPAIRS.items()}
    fallen = behind(records)
    if fallen is not None:
        verdicts = {BEHIND: fallen.verdict(MUCH_BEHIND)} | verdicts
    for verdict in ("much", "some"):
        named = [what for what, found in verdicts.items() if found == verdict]
        if named:
            return f"{verdict} to repair: {'; '.join(named)}"
    if unclear := [what for what, found in verdicts.items() if found == "unclear"]:
        return f"unclear, so few classes or images as there are: {'; '.join(unclear)}"
    return "little to repair"
