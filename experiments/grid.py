"""Settings of a row that are searched: every point of a grid is a run, and source validation images choose among them.

`grid` of a row is a mapping of config keys to lists of values, of which every combination is a point. With `draws: N`
(and `seed`, 0 unless given) there are N random points: a list is drawn from, and `{uniform: [LOW, HIGH]}` or
`{log-uniform: [LOW, HIGH]}` is a distribution; a value is rounded to three digits, so that folders have readable names.

The runs of the points have `TEST.SPLIT val`: they are tested on validation images of their source domains alone, and
their records hold no test number. A point is chosen for each task, data set and target by its mean over seeds; only
then the run with this point is made that tests the target.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dassl_clip.engine.overrides import Pairs
from dassl_clip.results import records
from dassl_clip.results.errors import UserError

from . import state
from .plan import Run

UNIFORM, LOG_UNIFORM = DISTRIBUTIONS = ("uniform", "log-uniform")
ON_VALIDATION = (("TEST.SPLIT", "val"),)
DIGITS = 3
_COUNTS = ("draws", "seed")


def points(grid: Mapping[str, Any], place: str) -> list[Pairs]:
    """The points of a grid, as KEY VALUE pairs, each once.

    Args:
        grid: the mapping of a sweep's file.
        place: which row of which file it is, for messages.

    Raises:
        UserError: a value is neither a list nor a distribution, or draws are missing or none.
    """
    values = {key: value for key, value in grid.items() if key not in _COUNTS}
    for key, value in values.items():
        _check(key, value, "draws" in grid, place)
    for key in _COUNTS:
        number, least = grid.get(key, 1), int(key == "draws")
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise UserError(f"{place}: `grid`: {key} should be a whole number, at least {least}, not {number!r}")
    if not values:
        raise UserError(f"{place}: `grid` should name config keys with their values, such as OPTIM.LR: [0.002, 0.02]")
    if "draws" not in grid:
        combined: Iterable[Sequence[Any]] = itertools.product(*values.values())
    else:
        random = np.random.default_rng(grid.get("seed", 0))
        combined = ([_draw(value, random) for value in values.values()] for _ in range(grid["draws"]))
    made = [tuple((key, _text(value)) for key, value in zip(values, point)) for point in combined]
    return list(dict.fromkeys(made))


def _check(key: str, value: Any, drawn: bool, place: str) -> None:
    if isinstance(value, list) and value:
        return
    what = f"{place}: `grid`: {key} should be a list of values, or with `draws` also {{{UNIFORM}: [LOW, HIGH]}}"
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in DISTRIBUTIONS:
        raise UserError(f"{what} or {{{LOG_UNIFORM}: [LOW, HIGH]}}, not {value!r}")
    (kind, ends), numbers = next(iter(value.items())), (int, float)
    fits = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, numbers) for end in ends)
    if not fits or not ends[0] < ends[1] or (kind == LOG_UNIFORM and ends[0] <= 0):
        above = " above 0" if kind == LOG_UNIFORM else ""
        raise UserError(f"{place}: `grid`: {key}: {kind} needs two numbers{above}, the smaller one first, not {ends!r}")
    if not drawn:
        raise UserError(f"{place}: `grid`: {key} has a distribution, so `grid` needs `draws`, the number of points")


def _draw(value: Any, random: np.random.Generator) -> Any:
    if isinstance(value, list):
        return value[int(random.integers(len(value)))]
    ((kind, (low, high)),) = value.items()
    if kind == LOG_UNIFORM:
        number = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        number = random.uniform(low, high)
    return float(f"{number:.{DIGITS}g}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def name_of(point: Pairs) -> str:
    """`OPTIM.LR 0.004, OPTIM.MAX_EPOCH 8`."""
    return ", ".join(f"{key} {value}" for key, value in point)


def best(validation: Sequence[Sequence[float]]) -> int:
    """The number of the point with the highest mean accuracy on validation images; the first among equals.

    Args:
        validation: of each point the accuracies over seeds. It is all that a choice is made from.
    """
    means = [statistics.fmean(accuracies) for accuracies in validation]
    return means.index(max(means))


def validation_accuracies(runs: Sequence[Run]) -> list[float] | None:
    """The accuracies of the runs of one point on source validation images; None while one is missing.

    Raises:
        UserError: a record holds test numbers, so it is of no search.
    """
    found = []
    for run in runs:
        record = records.read_record(run.folder) if state.is_complete(run) else None
        if record is None:
            return None
        if set(record["metrics"]) != {"val"}:
            raise UserError(f"{run.folder} is a point of a grid, but its record has more than validation numbers")
        found.append(float(record["metrics"]["val"]["accuracy"]))
    return found
