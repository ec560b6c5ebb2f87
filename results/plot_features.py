"""Figures from what runs saved of single images: confusion matrices of predictions, and features in the plane.

Features are projected by PCA, t-SNE or UMAP and coloured by class or by domain. Sources: van der Maaten and Hinton,
"Visualizing Data using t-SNE", JMLR 2008; McInnes et al., "UMAP", arXiv 1802.03426. Distances between far groups of
such a figure mean little, and the caption says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .figures import GREY, PANELS_PER_ROW, Plot, caption, finish, look, new_figure, shortened, styled
from .groups import Record, row_of
from .predictions import confusion_counts, read_predictions

MOST_CLASSES = 50
WORST = 30
NUMBERS_UP_TO = 12
REST = "other classes"
METHODS = ("tsne", "umap", "pca")
PACKAGES = {"tsne": ("scikit-learn", "plots"), "umap": ("umap-learn", "umap")}
SHOWN_CLASSES = 10
PERPLEXITY = 30.0  # of t-SNE, at most a third of the points; UMAP has half as many neighbours
FIRST_COMPONENTS = 50
TITLES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}


def confusion_plot(runs: Sequence[tuple[Path, Record]], classes: Sequence[str] = ()) -> Plot:
    """Confusion matrices, a panel a method: the images of its runs together, each row as shares in percent.

    Args:
        runs: folder and record of each run.
        classes: names of the classes to show; default: all, of more than 50 those 30 with the lowest accuracy.

    Raises:
        UserError: a run has no predictions, the runs have different classes, or a name is unknown.
    """
    counts: dict[str, np.ndarray] = {}
    names: list[str] = []
    for folder, record in runs:
        predictions = read_predictions(folder)
        names = names or predictions.classnames
        if predictions.classnames != names:
            raise UserError(
                f"{folder} has other classes ({', '.join(predictions.classnames[:3])}, ...) than the first run "
                f"({', '.join(names[:3])}, ...); a figure shows one list of classes"
            )
        label = row_of(record).label
        counts[label] = counts.get(label, 0) + confusion_counts(predictions)
    if len(counts) > PANELS_PER_ROW:
        raise UserError(f"{len(counts)} methods ({', '.join(counts)}): at most {PANELS_PER_ROW} fit side by side")
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
        records = [record for _, record in runs]
        targets = sorted({"+".join(record["target_domains"]) or record["class_subset"] for record in records})
        text = f"Confusion matrix, test images of {', '.join(targets)}, {len(runs)} runs, every row sums to 100 %."
        if len(chosen) < len(names):
            rule = "" if classes else ", those with the lowest accuracy"
            text += f" Shown: {len(chosen)} of {len(names)} classes{rule}."
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
    target = np.full(len(counts), len(chosen))
    target[list(chosen)] = np.arange(len(chosen))
    size = int(target.max()) + 1
    merged = np.zeros((size, size), dtype=np.int64)
    np.add.at(merged, (target[:, None], target[None, :]), counts)
    return merged


def _worst_pairs(merged: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """The three most frequent confusions of each method, in words."""
    parts = []
    for label, count in merged.items():
        wrong = count.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:3]
        pairs = [divmod(int(index), len(count)) for index in order]
        texts = [f"{names[a]} as {names[b]} ({wrong[a, b]} of {count[a].sum()})" for a, b in pairs if wrong[a, b]]
        parts.append(f"{label}: {', '.join(texts) or 'none'}")
    return f"Most frequent confusions: {'; '.join(parts)}."


@dataclass(frozen=True)
class Points:
    """Features of the images of one panel."""

    title: str
    features: np.ndarray  # `[N, E]`, normalised
    names: Sequence[str]  # what colours each image: its class or its domain, `N` texts


def project(features: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """Features `[N, E]` as points `[N, 2]`.

    Args:
        features: finite numbers.
        method: `tsne` (after 50 principal components), `umap` or `pca`.
        seed: of t-SNE and UMAP.

    Raises:
        UserError: an unknown method, a package that is not installed, or fewer than 4 points.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if len(features) < 4:
        raise UserError(f"{len(features)} images are too few for a figure of features; at least 4 are needed")
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    if method == "pca":
        return _components(centred, 2)
    package, extra = PACKAGES[method]
    try:
        if method == "tsne":
            from sklearn.manifold import TSNE
        else:
            from umap import UMAP
    except ImportError as error:
        install = f"pip install 'dassl-clip[{extra}]', or pip install {package}"
        raise UserError(
            f"{TITLES[method]} needs the package {package}: {install}; PCA needs none (--method pca)"
        ) from error
    if method == "umap":
        neighbours = int(min(max(PERPLEXITY / 2, 2), len(features) - 1))
        fit = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(fit.fit_transform(features))
    reduced = _components(centred, FIRST_COMPONENTS)
    start = _components(centred, 2)
    start = start / max(start[:, 0].std(), np.finfo(np.float64).tiny) * 1e-4
    fit = TSNE(perplexity=min(PERPLEXITY, (len(features) - 1) / 3), init=start, random_state=seed)
    return np.asarray(fit.fit_transform(reduced))


def _components(centred: np.ndarray, number: int) -> np.ndarray:
    """The first principal components `[N, number]` (fewer where there are fewer), with a fixed sign."""
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :number] * sizes[:number]
    signs = np.sign(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])])
    points = points * np.where(signs == 0, 1, signs)
    return np.pad(points, ((0, 0), (0, max(0, min(number, 2) - points.shape[1]))))


def points_plot(
    panels: Sequence[Points],
    records: Sequence[Record],
    method: str,
    what: str,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Plot:
    """One panel for each set of features; a projection of its own for each.

    Args:
        panels: the features.
        records: records of the runs, for the caption.
        method: see `project`.
        what: which images these are, such as `test images, a seeded draw of 500`.
        classes: the names to colour; default: all, of more than 10 those with the most images. The rest is grey.
        seed: see `project`.

    Raises:
        UserError: an unknown name, or see `project`.
    """
    every = [name for panel in panels for name in panel.names]
    known = sorted(set(every))
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise UserError(f"--classes: there are no images of '{unknown[0]}'; there are of {', '.join(known)}")
    coloured = list(classes) or sorted(sorted(known, key=lambda name: (-every.count(name), name))[:SHOWN_CLASSES])
    with styled():
        figure, axes = new_figure(len(panels), width=4.2, height=3.9)
        handles: dict[str, Any] = {}
        for axis, panel in zip(axes, panels):
            (xs, ys), names = project(panel.features, method, seed).T, np.asarray(panel.names)
            rest = ~np.isin(names, coloured)
            size = float(np.clip(2500 / len(names), 4, 18))
            if rest.any():
                handles[REST] = axis.scatter(xs[rest], ys[rest], s=size * 0.6, color=GREY, marker=".", linewidths=0)
            for index, name in enumerate(coloured):
                here, style = names == name, look(index)
                drawn = axis.scatter(
                    xs[here], ys[here], s=size, color=style["color"], marker=style["marker"], linewidths=0
                )
                handles.setdefault(shortened(name, 24), drawn)
            axis.set(title=shortened(panel.title, 52), xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
        count = ", ".join(str(len(panel.names)) for panel in panels)
        text = f"{TITLES[method]} of normalised image features: {what} ({count} images)."
        if len(coloured) < len(known):
            rule = "" if classes else ", those with the most images"
            text += f" In colour: {len(coloured)} of {len(known)}{rule}."
        if method != "pca":
            text += f" Seed {seed}; sizes of groups and distances between far groups mean little."
        return finish(method, figure, handles, caption(records, text, ""), markerscale=1.6)
