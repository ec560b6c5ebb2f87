"""Published numbers of one row that several sources print: a band from the lowest to the highest, never their mean.

A published table lists such rows under `rows`, one for each source, with what explains why sources differ: which part
of the target was tested, how the input was normalised, what the head started from, how long was trained, from which
weights, who ran it, and where the numbers were read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TEST = "test"
FACTS = ("test part", "input statistics", "head", "steps", "weights", "run by", "read in")
NOT_SAID = "not said"
OURS = "ours"
Published = float | Mapping[str, float]  # one number, or source -> number
Place = tuple[str, str]  # group, column


@dataclass(frozen=True)
class Source:
    """What one source prints of a row; of our own runs (`OURS`) only what explains their numbers.

    Attributes:
        method: the row.
        name: of the source, short.
        facts: what explains the numbers, of `FACTS`.
        numbers: place -> number in percent and, where it is printed, its error.
        doubt: why the numbers are in no band; "" for none.
    """

    method: str
    name: str
    facts: Mapping[str, str]
    numbers: Mapping[Place, tuple[float, float | None]] = field(default_factory=dict)
    doubt: str = ""

    @property
    def label(self) -> str:
        """`ERM [DPL]`."""
        return f"{self.method} [{self.name}]" + (" (in no band)" if self.doubt else "")

    def text(self, place: Place) -> str:
        """`92.9 +/- 1.9`, as it was printed; `-` where nothing was."""
        value, error = self.numbers.get(place, (None, None))
        return "-" if value is None else f"{value}" if error is None else f"{value} +/- {error}"

    def records(self) -> list[dict[str, Any]]:
        """Every number with what explains it, flat; of our own one line without a number."""
        head, about = {"method": self.method, "reading": TEST}, {"source": self.name, **self.facts, "doubt": self.doubt}
        lines = [
            {**head, "data": group, "column": column, "published": value, "published_error": error, **about}
            for (group, column), (value, error) in self.numbers.items()
        ]
        return lines or [head | about]


def ends_of(published: Published) -> tuple[float, float]:
    """The lowest and the highest of the published numbers."""
    numbers = published.values() if isinstance(published, Mapping) else [published]
    return min(numbers), max(numbers)


def text_of(published: Published) -> str:
    """`85.8..96.1`, or one number where all sources print the same."""
    low, high = ends_of(published)
    return f"{low}" if low == high else f"{low}..{high}"


def distance(number: float, published: Published) -> float:
    """From a published number or band: 0 inside the band, above it positive, below it negative."""
    low, high = ends_of(published)
    return number - min(max(number, low), high)


def read_sources(table: Mapping[str, Any]) -> list[Source]:
    """The sources of a published table, from its `rows`, whose values go to the places of `columns`.

    A place is "group/column"; the mean of a data set may have two, beside its domains and among all data sets.
    """
    columns = [[column] if isinstance(column, str) else column for column in table.get("columns", ())]
    found = []
    for row in table.get("rows", ()):
        numbers: dict[Place, tuple[float, float | None]] = {}
        errors = row.get("errors") or [None] * len(columns)
        for places, value, error in zip(columns, row["values"], errors, strict=True):
            for group, _, column in (place.partition("/") for place in places if value is not None):
                numbers[group, column] = value, error
        facts = {name: row.get(name, NOT_SAID) for name in FACTS}
        found.append(Source(row["method"], row["source"], facts, numbers, row.get("doubt", "")))
    return found


def add_sources(cells: dict[str, dict[str, dict[str, Any]]], sources: Sequence[Source]) -> None:
    """Add what sources print to the cells of a table, except for what is in doubt."""
    for source in sources:
        places = cells.setdefault(source.method, {}).setdefault(TEST, {})
        for (group, column), (value, _) in source.numbers.items() if not source.doubt else ():
            places.setdefault(f"{group}/{column}", {})[source.name] = value
