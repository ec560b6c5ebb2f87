"""Image features in the plane: PCA, t-SNE or UMAP of saved features, coloured by class or by domain.

Sources: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; McInnes et al., "UMAP", arXiv 1802.03426.
Distances between far groups of such a figure mean little, and the caption says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UserError
from .plot_style import GREY, Plot, finish, look, new_figure, shortened, styled
from .plots import caption

METHODS = ("tsne", "umap", "pca")
PACKAGES = {"tsne": ("scikit-learn", "plots"), "umap": ("umap-learn", "umap")}
SHOWN_CLASSES = 10
PERPLEXITY = 30.0
FIRST_COMPONENTS = 50
TITLES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}


@dataclass(frozen=True)
class Points:
    """Features of the images of one panel.

    Attributes:
        title: the panel's title.
        features: `[N, E]`, normalised.
        names: what colours each image: its class or its domain, `N` texts.
    """

    title: str
    features: np.ndarray
    names: Sequence[str]


def project(features: np.ndarray, method: str, seed: int = 0, perplexity: float = PERPLEXITY) -> np.ndarray:
    """Features `[N, E]` as points `[N, 2]`.

    Args:
        features: finite numbers.
        method: `tsne` (after 50 principal components), `umap` or `pca`.
        seed: of t-SNE and UMAP.
        perplexity: of t-SNE, lowered to a third of the points; UMAP takes half of it as its number of neighbours.

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
        raise UserError(
            f"{TITLES[method]} needs the package {package}: pip install 'dassl-clip[{extra}]', or pip install "
            f"{package}; PCA needs none (--method pca)"
        ) from error
    if method == "umap":
        neighbours = int(min(max(perplexity / 2, 2), len(features) - 1))
        return np.asarray(
            UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(features)
        )
    reduced = _components(centred, FIRST_COMPONENTS)
    start = _components(centred, 2)
    start = start / max(start[:, 0].std(), np.finfo(np.float64).tiny) * 1e-4
    fit = TSNE(perplexity=min(perplexity, (len(features) - 1) / 3), init=start, random_state=seed)
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
    found: Sequence[Mapping[str, Any]],
    method: str,
    what: str,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Plot:
    """One panel for each set of features; a projection of its own for each.

    Args:
        panels: the features.
        found: records of the runs, for the caption.
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
            points, names = project(panel.features, method, seed), np.asarray(panel.names)
            rest = ~np.isin(names, coloured)
            size = float(np.clip(2500 / len(points), 4, 18))
            if rest.any():
                drawn = axis.scatter(
                    points[rest, 0], points[rest, 1], s=size * 0.6, color=GREY, marker=".", linewidths=0
                )
                handles["other classes"] = drawn
            for index, name in enumerate(coloured):
                style = look(index)
                own = points[names == name]
                drawn = axis.scatter(
                    own[:, 0], own[:, 1], s=size, color=style["color"], marker=style["marker"], linewidths=0
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
        return finish(method, figure, handles, caption(found, text, ""), markerscale=1.6)
