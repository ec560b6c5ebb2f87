"""Is the difference between two rows of a table more than the luck of which images were tested?

The interval of the difference between two means over domains, by the paired bootstrap: the tested images of each
domain are drawn again with replacement, and each draw takes both rows, and all seeds, on the same images (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: the percentile interval). It says nothing of other
seeds or other domains, which are not drawn.

Shapes: `N` images, `S` seeds, `D` domains, `R` resamples (`RESAMPLES`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .errors import UserError
from .groups import Group, Record, Row
from .predictions import PREDICTIONS, read_predictions
from .rendering import Value

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
AT_ONCE = 2**22  # counts of a block of resamples
INTERVAL_NOTE = (
    f"interval: {100 * LEVEL:.0f} % paired bootstrap interval of the gain in the mean, over the tested images of each "
    f"domain ({RESAMPLES:,} resamples; seeds are not drawn)"
)
SAME = 1e-3  # points between two ways to compute one accuracy
Tested = tuple[np.ndarray, np.ndarray, np.ndarray]  # images by name, how often each was tested, and rightly, [N] each


def paired_bootstrap(domains: Sequence[np.ndarray], harmonic: bool = False) -> tuple[float, float]:
    """The interval at `LEVEL` of the difference of two accuracies in points, each a mean over domains, then over seeds.

    Args:
        domains: Of each domain, for each image and seed: how often the image was tested, and how often rightly by the
            row and by the reference, `[N, S, 3]`.
        harmonic: The mean over domains is the harmonic one.
    """
    generator = np.random.default_rng(SEED)
    accuracies = []  # [R, S, 2] each
    for counts in domains:
        # To draw N images again is to draw how many are of each pattern of counts, and few patterns differ.
        patterns, images = np.unique(counts.reshape(len(counts), -1), axis=0, return_counts=True)
        size = max(1, AT_ONCE // len(patterns))
        blocks = [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
        sums = [generator.multinomial(len(counts), images / len(counts), size) @ patterns for size in blocks]
        drawn = np.concatenate(sums).reshape(RESAMPLES, -1, 3)
        with np.errstate(invalid="ignore"):  # a resample without an image of some seed
            accuracies.append(100 * drawn[..., 1:] / drawn[..., :1])
    stacked = np.stack(accuracies)
    with np.errstate(divide="ignore"):
        means = len(stacked) / (1 / stacked).sum(axis=0) if harmonic else stacked.mean(axis=0)
    differences = (means[..., 0] - means[..., 1]).mean(axis=1)
    low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tested_images(record: Record) -> Tested:
    """The test images of a run, and how it did on each.

    An image is named by its label and the part of its path below the folder that all tested images share, so data that
    lie elsewhere on another machine are the same images.

    Raises:
        UserError: The run's predictions are missing, damaged, or not those of its record.
    """
    if "folder" not in record:
        raise UserError("its record does not say in which folder the predictions lie")
    folder = Path(record["folder"])
    predictions = read_predictions(folder)
    right = predictions.top[:, 0] == predictions.labels
    accuracy, metrics = 100 * float(right.mean()), record["metrics"]["test"]
    if len(right) != metrics["total"] or abs(accuracy - metrics["accuracy"]) > SAME:
        raise UserError(
            f"{folder / PREDICTIONS} has {accuracy:.2f} % of {len(right):,} images right, but the record "
            f"{metrics['accuracy']:.2f} % of {metrics['total']:,}: they are not of one test; run it again"
        )
    paths = predictions.paths.tolist()
    start = len(os.path.commonprefix(paths).rpartition("/")[0])  # noqa: RUF071 (commonpath refuses absolute beside relative ones)
    keys = [f"{label} {path[start:]}" for label, path in zip(predictions.labels.tolist(), paths)]
    images, index = np.unique(np.array(keys), return_inverse=True)
    return images, np.bincount(index), np.bincount(index, right).astype(np.int64)


def gain_intervals(group: Group, rows: Sequence[Row], base: Row | None) -> tuple[dict[Row, Value], list[str]]:
    """The interval of each row's gain over a reference in the mean column, and a line for each row that has none.

    Args:
        group: Its records name their `folder`, where the predictions lie.
        rows: The rows wanted, without the reference.
        base: The reference; None: there is none.
    """
    if base is None:
        return {}, ["interval: no row to compare with; name one with --reference"]
    tested: dict[int, Tested] = {}

    def read(record: Record) -> Tested:
        if id(record) not in tested:
            tested[id(record)] = tested_images(record)
        return tested[id(record)]

    found: dict[Row, Value] = {}
    missing: dict[str, list[str]] = {}
    for row in rows:
        try:
            low, high = paired_bootstrap(paired_counts(group, row, base, read), group.is_harmonic)
        except UserError as error:
            missing.setdefault(str(error), []).append(row.label)
        else:
            text = f"[{round(low, 1) + 0.0:+.1f}, {round(high, 1) + 0.0:+.1f}]"  # no "-0.0"
            found[row] = Value(text, more={"low": low, "high": high})
    return found, [f"interval: none for {', '.join(labels)}: {why}" for why, labels in missing.items()]


def paired_counts(group: Group, row: Row, base: Row, read: Callable[[Record], Tested]) -> list[np.ndarray]:
    """What `paired_bootstrap` takes, of two rows: for each domain of the mean the counts `[N, S, 3]` of all its images.

    Raises:
        UserError: No seed has every domain in both rows, or the two runs of a cell did not test the same images.
    """
    if group.facts["split"] != "test":
        raise UserError(f"predictions are kept of test images only, not of {group.facts['split']} images")
    cells = [group.runs.get(one, {}).get(name, {}) for name in group.averaged for one in (row, base)]
    seeds = sorted(set.intersection(*map(set, cells))) if cells else []
    if not seeds:
        raise UserError(f"no seed has every domain both here and in {base.label}")
    domains = []
    for name in group.averaged:
        pairs = []
        for seed in seeds:
            ours, theirs = (read(group.runs[one][name][seed]) for one in (row, base))
            if not np.array_equal(ours[0], theirs[0]) or not np.array_equal(ours[1], theirs[1]):
                alone = sorted({*ours[0].tolist()} ^ {*theirs[0].tolist()})
                such = f": {len(alone):,} are in one run only (such as {alone[0].partition(' ')[2]})" if alone else ""
                raise UserError(f"{name}, seed {seed}: {base.label} did not test the same images, with labels{such}")
            pairs.append((ours[0], np.stack([ours[1], ours[2], theirs[2]], axis=1)))
        images = np.unique(np.concatenate([own for own, _ in pairs]))
        counts = np.zeros((len(images), len(seeds), 3), dtype=np.int64)
        for place, (own, numbers) in enumerate(pairs):
            counts[np.searchsorted(images, own), place] = numbers
        domains.append(counts)
    return domains
