"""Confusion matrices from the saved predictions of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .plot_style import PANELS_A_ROW, Plot, finish, new_figure, shortened, styled
from .plots import caption
from .tables import row_of

PREDICTIONS = "predictions.npz"
MOST_CLASSES = 50
WORST = 30
NUMBERS_UP_TO = 12
REST = "other classes"


@dataclass(frozen=True)
class Predictions:
    """What a run predicted of each test image.

    Attributes:
        paths: `[N]`, texts.
        labels: `[N]`.
        top: the best classes, best first, `[N, 5]` (fewer columns for fewer classes).
        shares: their softmax shares, `[N, 5]`.
        classnames: the class names, `C` texts.
    """

    paths: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    shares: np.ndarray
    classnames: list[str]


def read_predictions(folder: Path) -> Predictions:
    """The saved predictions of a run.

    Raises:
        UserError: the run kept none, or its file is damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(
            f"{folder} has no {PREDICTIONS}: the run was made before predictions were kept, or by a trainer that keeps "
            "none; test it again with --eval-only --model-dir, or run it again, to have them"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in ("paths", "labels", "top", "shares", "classnames")}
        _check(found)
    except Exception as error:  # damaged archives make their readers raise almost anything
        raise UserError(f"{path} is damaged ({error}); run it again") from error
    return Predictions(**{**found, "classnames": found["classnames"].tolist()})


def _check(found: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError unless the arrays of predictions go together."""
    kinds = {"paths": "U", "classnames": "U", "labels": "iu", "top": "iu", "shares": "f"}
    for key, kind in kinds.items():
        if found[key].dtype.kind not in kind or found[key].ndim != (2 if key in ("top", "shares") else 1):
            raise UserError(f"{key} is {list(found[key].shape)} of {found[key].dtype}")
    rows = {key: len(found[key]) for key in ("paths", "labels", "top", "shares")}
    if len(set(rows.values())) > 1 or found["top"].shape != found["shares"].shape or not found["top"].shape[1]:
        raise UserError(f"its lists have different lengths: {rows}")
    for key in ("labels", "top"):
        if found[key].size and not 0 <= found[key].min() <= found[key].max() < len(found["classnames"]):
            raise UserError(f"{key} holds numbers of no class")


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """How many images of each class (rows) got each class as the best answer (columns), `[C, C]`."""
    size = len(predictions.classnames)
    flat = predictions.labels.astype(np.int64) * size + predictions.top[:, 0].astype(np.int64)
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def confusion_plot(found: Sequence[tuple[Path, Mapping[str, Any]]], classes: Sequence[str] = ()) -> Plot:
    """Confusion matrices, a panel a method: the images of its runs together, each row as shares in percent.

    Args:
        found: folder and record of each run.
        classes: names of the classes to show; default: all, of more than 50 those 30 with the lowest accuracy.

    Raises:
        UserError: a run has no predictions, the runs have different classes, or a name is unknown.
    """
    counts: dict[str, np.ndarray] = {}
    names: list[str] = []
    for folder, record in found:
        predictions = read_predictions(folder)
        names = names or predictions.classnames
        if predictions.classnames != names:
            raise UserError(
                f"{folder} has other classes ({', '.join(predictions.classnames[:3])}, ...) than the first run "
                f"({', '.join(names[:3])}, ...); a figure shows one list of classes"
            )
        label = row_of(record).label
        counts[label] = counts.get(label, 0) + confusion_counts(predictions)
    if len(counts) > PANELS_A_ROW:
        raise UserError(f"{len(counts)} methods ({', '.join(counts)}): at most {PANELS_A_ROW} fit side by side")
    chosen = _choose(names, np.sum(list(counts.values()), axis=0), classes)
    merged = {label: _merge(count, chosen) for label, count in counts.items()}
    shown = [names[index] for index in chosen] + ([REST] if len(chosen) < len(names) else [])
    size = len(shown)
    with styled():
        side = max(3.4, 0.16 * size + 1.6)
        figure, axes = new_figure(len(merged), side, 0.9 * side - 0.6)
        for panel, (label, count) in zip(axes, merged.items()):
            total = count.sum(axis=1, keepdims=True)
            shares = 100 * count / np.maximum(total, 1)
            image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            small = 8 if size <= 20 else 5.5
            panel.set_xticks(range(size), [shortened(name, 22) for name in shown], rotation=90, fontsize=small)
            panel.set_yticks(range(size), [shortened(name, 22) for name in shown], fontsize=small)
            accuracy = 100 * np.trace(counts[label]) / max(counts[label].sum(), 1)
            panel.set(xlabel="predicted", ylabel="true", title=f"{shortened(label, 36)}: {accuracy:.1f} %")
            panel.grid(visible=False)
            panel.tick_params(length=0)
            if size <= NUMBERS_UP_TO:
                for row, column in np.ndindex(shares.shape):
                    if count[row, column]:
                        colour = "white" if shares[row, column] > 55 else "black"
                        text = f"{shares[row, column]:.0f}"
                        panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        figure.colorbar(image, ax=axes, label="images of the true class (%)", shrink=0.7)
        records = [record for _, record in found]
        targets = sorted({"+".join(record["target_domains"]) or record["class_subset"] for record in records})
        text = f"Confusion matrix, test images of {', '.join(targets)}, {len(found)} runs, every row sums to 100 %."
        if len(chosen) < len(names):
            text += f" Shown: {len(chosen)} of {len(names)} classes" + (
                "." if classes else ", those with the lowest accuracy."
            )
        return finish("confusion", figure, {}, caption(records, f"{text}\n{_worst_pairs(merged, shown)}", ""))


def _choose(names: Sequence[str], counts: np.ndarray, classes: Sequence[str]) -> list[int]:
    """Indices of the classes to show, in label order."""
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UserError(f"--classes: there is no class '{unknown[0]}'; the runs have {', '.join(names)}")
    if classes:
        return sorted({names.index(name) for name in classes})
    if len(names) <= MOST_CLASSES:
        return list(range(len(names)))
    accuracy = counts.diagonal() / np.maximum(counts.sum(axis=1), 1)
    accuracy = np.where(counts.sum(axis=1) > 0, accuracy, np.inf)
    return sorted(np.argsort(accuracy, kind="stable")[:WORST].tolist())


def _merge(counts: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """The matrix with all classes but the chosen ones put together as the last."""
    place = np.full(len(counts), len(chosen))
    place[list(chosen)] = np.arange(len(chosen))
    size = int(place.max()) + 1
    merged = np.zeros((size, size), dtype=np.int64)
    np.add.at(merged, (place[:, None], place[None, :]), counts)
    return merged


def _worst_pairs(merged: Mapping[str, np.ndarray], names: Sequence[str], most: int = 3) -> str:
    """The most frequent confusions of each method, in words."""
    parts = []
    for label, count in merged.items():
        wrong = count.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(index), len(count)) for index in order]
        texts = [f"{names[a]} as {names[b]} ({wrong[a, b]} of {count[a].sum()})" for a, b in pairs if wrong[a, b]]
        parts.append(f"{label}: {', '.join(texts) or 'none'}")
    return f"Most frequent confusions: {'; '.join(parts)}."
