"""Small images for a page: samples of each domain, those that a method is most and least certain of, confused classes.

All is read from the saved predictions of runs and from the images where they still are. Thumbnails are JPEG files of a
bounded size in `data:` links; images that are gone, or cannot be decoded, are counted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .escaping import printable
from .groups import Record, column_of, row_of
from .image_formats import known_formats
from .image_rows import open_image
from .predictions import PREDICTIONS, Predictions, confusion_counts, read_predictions

SIDE = 96  # pixels of a thumbnail's longer side
PER_STRIP = 6
MOST_STRIPS = 24
MOST_PAIRS = 5
MOST_PIXELS = 100_000_000  # of an image that is opened


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a `data:` link, what stands below it, and whether that is a mistake."""

    link: str
    caption: str
    wrong: bool = False


@dataclass(frozen=True)
class Strip:
    """Pictures side by side."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""  # what is not shown, and why


@dataclass(frozen=True)
class Pair:
    """A class, and the class that a method took its images for."""

    method: str
    label: str
    answer: str
    count: int
    total: int  # images of the class


def with_predictions(runs: Iterable[tuple[Path, Record]]) -> list[tuple[Record, Predictions]]:
    """The runs that saved predictions which can be read."""
    found = []
    for folder, record in runs:
        if (folder / PREDICTIONS).is_file():
            try:
                found.append((record, read_predictions(folder)))
            except ValueError:  # damaged: `dassl-clip plot confusion` says how
                continue
    return found


def strips(runs: Sequence[tuple[Record, Predictions]]) -> tuple[list[Strip], str]:
    """Samples of each domain, then the most and least certain images of each method, and why some are left out."""
    asked: list[tuple[str, list[tuple[str, str, bool]]]] = []
    domains: dict[tuple[str, str], Predictions] = {}
    methods: dict[tuple[str, str, str], list[Predictions]] = {}
    for record, predictions in runs:
        domains.setdefault((record["dataset"], column_of(record)), predictions)
        key = record["dataset"], record["task"], row_of(record).label
        if all(own.classnames == predictions.classnames for own in methods.get(key, [])):
            methods.setdefault(key, []).append(predictions)
    for (dataset, domain), predictions in sorted(domains.items(), key=lambda entry: entry[0]):
        asked.append((f"{dataset}, {domain}: test images", _spread(predictions)))
    for (dataset, task, method), several in sorted(methods.items(), key=lambda entry: entry[0]):
        title = f"{method}, {dataset}{f', task {task}' if task else ''}"
        ranked = _by_certainty(several)
        asked.append((f"{title}: most certain", ranked[:PER_STRIP]))
        asked.append((f"{title}: least certain", ranked[::-1][:PER_STRIP]))
    left_out = len(asked) - MOST_STRIPS
    made = [_strip(title, images) for title, images in asked[:MOST_STRIPS]]
    return made, f"{left_out} more rows of images are left out" if left_out > 0 else ""


def confused(runs: Sequence[tuple[Record, Predictions]]) -> list[Pair]:
    """The classes that each method confuses most, over all of its runs of a data set and task."""
    counts: dict[tuple[str, str, str, tuple[str, ...]], np.ndarray] = {}
    for record, predictions in runs:
        key = record["dataset"], record["task"], row_of(record).label, tuple(predictions.classnames)
        counts[key] = counts.get(key, 0) + confusion_counts(predictions)
    pairs = []
    for (dataset, task, method, names), count in sorted(counts.items(), key=lambda entry: entry[0]):
        totals = count.sum(axis=1)
        wrong = count - np.diag(count.diagonal())
        for place in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]:
            label, answer = divmod(int(place), len(names))
            if wrong[label, answer]:
                what = f"{method}, {dataset}{f', task {task}' if task else ''}"
                pairs.append(Pair(what, names[label], names[answer], int(wrong[label, answer]), int(totals[label])))
    return pairs


def thumbnail(path: str) -> str:
    """An image as a small JPEG in a `data:` link; "" where it is gone or cannot be decoded."""
    try:
        with open_image(path) as file, Image.open(file, formats=known_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                return ""
            image.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded at a fraction of its size
            small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        paper = Image.new("RGBA", small.size, "white")
        paper.alpha_composite(small)
        buffer = io.BytesIO()
        paper.convert("RGB").save(buffer, format="JPEG", quality=75)
    except Exception:  # files of unknown origin make decoders raise almost anything
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _strip(title: str, images: Sequence[tuple[str, str, bool]]) -> Strip:
    """A strip of images by path, caption and whether it is wrong."""
    made = [(path, Picture(thumbnail(path), caption, wrong)) for path, caption, wrong in images]
    gone = [path for path, picture in made if not picture.link]
    note = f"{len(gone)} of {len(made)} images cannot be shown: no image at {printable(gone[0])}" if gone else ""
    return Strip(title, [picture for _, picture in made if picture.link], note)


def _spread(predictions: Predictions) -> list[tuple[str, str, bool]]:
    """Images at equal distances in the list, which is sorted by class."""
    order = np.argsort(predictions.labels, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, PER_STRIP).round().astype(int))] if len(order) else order
    return [(str(predictions.paths[n]), predictions.classnames[int(predictions.labels[n])], False) for n in chosen]


def _by_certainty(several: Sequence[Predictions]) -> list[tuple[str, str, bool]]:
    """All images, each once, by the share of the best class: the most certain first."""
    found: dict[str, tuple[float, str, bool]] = {}
    for predictions in several:
        for path, label, top, shares in zip(predictions.paths, predictions.labels, predictions.top, predictions.shares):
            answer, truth = (predictions.classnames[int(index)] for index in (top[0], label))
            text = f"{answer} {100 * float(shares[0]):.0f} %"
            wrong = int(top[0]) != int(label)
            found.setdefault(str(path), (float(shares[0]), f"{text}, is {truth}" if wrong else text, wrong))
    ranked = sorted(found.items(), key=lambda entry: -entry[1][0])
    return [(path, caption, wrong) for path, (_, caption, wrong) in ranked]
