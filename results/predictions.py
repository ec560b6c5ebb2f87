"""What a run predicted of each test image, as saved in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError
from .labels import UNLABELLED

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """What a run predicted of each test image.

    Attributes:
        paths: `[N]`, texts.
        labels: `[N]`; -1 where the images have none.
        top: the best classes, best first, `[N, 5]` (fewer columns for fewer classes).
        shares: their softmax shares, `[N, 5]`.
        classnames: the class names, `C` texts.
        scores: the log-softmax of the logits in float16, `[N, C]`: each is off by at most 2^-11 of itself. None where
            they were not asked for, and of runs before version 0.2, which kept none.
    """

    paths: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    shares: np.ndarray
    classnames: list[str]
    scores: np.ndarray | None = None


def read_predictions(folder: Path, scores: bool = False) -> Predictions:
    """The saved predictions of a run.

    Args:
        folder: of the run.
        scores: read the scores of all classes too, which are nearly all of the file.

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
            arrays = {key: file[key] for key in ("paths", "labels", "top", "shares", "classnames")}
            if scores and "scores" in file:
                arrays["scores"] = file["scores"]
        _check(arrays)
    except Exception as error:  # damaged archives make their readers raise almost anything
        raise UserError(f"{path} is damaged ({error}); run it again") from error
    return Predictions(**{**arrays, "classnames": arrays["classnames"].tolist()})


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError unless the arrays of predictions go together."""
    kinds = {"paths": "U", "classnames": "U", "labels": "iu", "top": "iu", "shares": "f"}
    for key, kind in kinds.items():
        if arrays[key].dtype.kind not in kind or arrays[key].ndim != (2 if key in ("top", "shares") else 1):
            raise UserError(f"{key} is {list(arrays[key].shape)} of {arrays[key].dtype}")
    rows = {key: len(arrays[key]) for key in ("paths", "labels", "top", "shares")}
    if len(set(rows.values())) > 1 or arrays["top"].shape != arrays["shares"].shape or not arrays["top"].shape[1]:
        raise UserError(f"its lists have different lengths: {rows}")
    if "scores" in arrays:
        found, expected = arrays["scores"], (rows["labels"], len(arrays["classnames"]))
        if found.dtype.kind != "f" or found.shape != expected:
            raise UserError(f"scores is {list(found.shape)} of {found.dtype}, expected {list(expected)} floats")
    for key in ("labels", "top"):
        if key == "labels" and (arrays[key] == UNLABELLED).all():
            continue
        if arrays[key].size and not 0 <= arrays[key].min() <= arrays[key].max() < len(arrays["classnames"]):
            raise UserError(f"{key} holds numbers of no class")


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """How many images of each class (rows) got each class as the best answer (columns), `[C, C]`.

    Raises:
        UserError: the images have no labels.
    """
    if (predictions.labels == UNLABELLED).any():
        raise UserError("the predictions are of images without labels, so nothing can be counted as right or wrong")
    size = len(predictions.classnames)
    flat = predictions.labels.astype(np.int64) * size + predictions.top[:, 0].astype(np.int64)
    return np.bincount(flat, minlength=size * size).reshape(size, size)
