"""What a table can show of runs beside accuracy, and whether the class shares of a run are calibrated.

Sources: the expected calibration error, Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3;
the Brier score, Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review, 1950.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError, did_you_mean

BINS = 15  # of the expected calibration error


@dataclass(frozen=True)
class Metric:
    """What the cells of a table show.

    Attributes:
        key: Its name in the metrics of a record.
        title: What stands above the methods.
        digits: Decimals of a cell.
        note: A line above the table.
        gains: Whether larger is better, so that a table may show gains.
        since: The version whose runs recorded it first; "" for all.
    """

    key: str
    title: str
    digits: int = 1
    note: str = ""
    gains: bool = False
    since: str = ""


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", "accuracy (%)", gains=True),
    "ece": Metric("ece", "ECE (%)", 1, f"ECE: expected calibration error, {BINS} bins; 0 is best", since="0.2"),
    "brier": Metric("brier", "Brier score", 3, "Brier score: squared error of all shares; 0 is best", since="0.2"),
    "nll": Metric("nll", "NLL (nats)", 3, "NLL: mean negative log-likelihood of the labels; 0 is best", since="0.2"),
    "top5": Metric("top5_accuracy", "top-5 accuracy (%)", gains=True),
}
WORST, INTERVAL, BUDGET = "worst", "interval", "budget"  # further columns of the table of accuracies
COST, LOSING = "cost", "losing"  # tables of their own
COLUMNS = (*METRICS, WORST, INTERVAL, BUDGET, COST, LOSING)
DEFAULT_COLUMNS = ("accuracy",)
WORST_NOTE = "worst: of each seed, the lowest of the columns that the mean is over"


def check_columns(words: Sequence[str]) -> tuple[str, ...]:
    """The columns that a user asks for, with spaces or commas between them, each once.

    Raises:
        UserError: There is no such column.
    """
    names = tuple(dict.fromkeys(name for word in words for name in word.replace(",", " ").split()))
    for name in names:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS)
            raise UserError(f"--columns: there is no column '{name}'.{hint} The columns are: {', '.join(COLUMNS)}.")
    if not names:
        raise UserError(f"--columns names no column; expected some of {', '.join(COLUMNS)}")
    return names


def shows_accuracy(columns: Sequence[str]) -> bool:
    """Whether a table of accuracies is among the tables of these columns."""
    return not {"accuracy", WORST, INTERVAL, BUDGET}.isdisjoint(columns)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error in percent.

    Images are sorted into bins of equal width by the share of their best class; bin `m` of `M` is `((m - 1) / M,
    m / M]`. The error is the mean over images of the gap, in their bin, between accuracy and mean share.

    Args:
        confidence: The share of the best class, in [0, 1], `[N]`.
        right: Whether the best class is the label, `[N]`.
        bins: Number of bins.
    """
    place = np.searchsorted(np.arange(1, bins) / bins, confidence)
    gaps = np.bincount(place, right.astype(np.float64) - confidence.astype(np.float64), minlength=bins)
    return 100 * float(np.abs(gaps).sum()) / len(confidence)


def calibration(rows: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """`ece` in percent, and the means `brier` and `nll` (in nats), for the metrics of a record.

    Args:
        rows: The share of the best class, Brier score and negative log-likelihood of each image, `[N, 3]`.
        right: Whether the best class is the label, `[N]`.
    """
    brier, nll = rows[:, 1:].astype(np.float64).mean(axis=0).tolist()
    return {"ece": calibration_error(rows[:, 0], right), "brier": brier, "nll": nll}
