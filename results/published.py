"""Sheets: what runs got beside what a paper printed, cell by cell, with the difference.

A sheet has rows (a method, and the split or extra test that was measured), groups of columns (a data set) and columns
(its domains, its class subsets, or other data sets). Summaries are computed for each seed from the cells of that seed:
the mean over domains, the harmonic mean of base and new classes, the mean over data sets; then come mean and sample
standard deviation over seeds. `R`, `delta` and `Delta_NC` (`extra_tables.MEASURES`) are computed from the
summaries of the prompt forms.

Published numbers are printed as published; none is computed here. Where several sources print a row, the published
number is a band (`bands.py`), a difference the distance from it, and a table below says how each source took its own.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from .bands import FACTS, NOT_SAID, OURS, Published, Source, add_sources, distance, ends_of, read_sources, text_of
from .errors import UserError
from .extra_tables import MEASURES
from .groups import MEAN
from .rendering import (
    DEVIATION,
    Contest,
    Spread,
    Value,
    cell_text,
    check_style,
    csv_lines,
    framed,
    json_text,
    over_seeds,
    tabulated,
    unlike_labels,
)

HARMONIC = "HM"
OVERALL = {MEAN: "Overall", HARMONIC: "Average"}  # the group of summaries over data sets, by kind of summary

_ROUNDING = 1e-9  # of sums of decimal fractions in binary
Key = tuple[str, str]  # label of the method, split or extra test
Place = tuple[str, str]  # group, column


def published_names() -> list[str]:
    """The published tables that ship with the package."""
    found = (item.name for item in files(__package__).joinpath("published").iterdir())
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def read_published(name: str) -> dict[str, Any]:
    """A published table: title, paper, source, backbone, metric, tolerance, footnotes, `cells` and `misprints`.

    `cells` is method -> split or extra test -> "group/column" -> number, or source -> number; `sources` are those of
    its `rows`, which stand in `cells` too; `misprints`, which a table may lack, is method
    -> split or extra test -> list of "group/column" whose printed number is known to be wrong: those are shown, but
    never checked.

    Raises:
        UserError: there is no such table.
    """
    if name not in published_names():
        raise UserError(f"there is no published table '{name}'; known: {', '.join(published_names())}")
    path = files(__package__) / "published" / f"{name}.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    table["sources"] = read_sources(table)
    add_sources(table["cells"], table["sources"])
    return table


@dataclass
class Cell:
    """One place of one row: what runs got by seed, what was published, and whether that is known to be a misprint."""

    got: dict[int, float] = field(default_factory=dict)
    published: Published | None = None
    misprint: bool = False

    @property
    def difference(self) -> float | None:
        """Mean of ours minus the published number, or its distance from the band, if there are both."""
        if not self.got or self.published is None:
            return None
        return distance(statistics.fmean(self.got.values()), self.published)


@dataclass
class Sheet:
    """What is printed."""

    title: str
    above: list[str]  # how our numbers were taken
    cells: dict[Key, dict[Place, Cell]]
    places: dict[str, list[str]]  # group -> its columns, in order
    seeds: int  # number that a cell should have
    tolerance: float | None  # largest difference that passes a check, in points; None if nothing is published
    below: list[str]  # footnotes, missing cells
    sources: list[Source] = field(default_factory=list)  # of rows that several print, and what explains ours
    spread: Spread = DEVIATION

    def render(self, style: str = "text", header: bool = True, width: int | None = None) -> str:
        """The sheet as text in a style of `FORMATS`; arguments as of `Table.render`."""
        check_style(style)
        if style == "csv":
            return csv_lines([*self.records(), *self._source_records()])
        if style == "json":
            tree: dict[str, Any] = {"title": self.title, **({"about": self.above} if header else {})}
            tree |= {"cells": self.records()} | ({"sources": self._source_records()} if self.sources else {})
            return json_text({**tree, "notes": self.below})
        blocks = [self._block(group, columns, style, width) for group, columns in self.places.items()]
        blocks += [self._source_block(style, width)] if self.sources else []
        body = "\n\n".join(block for block in blocks if block)
        return unlike_labels(framed(self.title, self.above if header else [], body, self.below, style, width))

    def _block(self, group: str, columns: Sequence[str], style: str, width: int | None) -> str:
        """Ours, published and difference for each row that has anything in a group of columns; "" where none has.

        Where a row has a published mean alone, and the block of all groups has it too, it is left out.
        """
        lines: list[list[str | Value]] = []
        ours: dict[str, list[int]] = {}  # extra test -> places of the rows that compete
        overall = next((name for name in self.places if name in OVERALL.values()), group)
        for (label, test), row in self.cells.items():
            cells = [row.get((group, column), Cell()) for column in columns]
            if group != overall and (overall, group) in row and not any(_holds(cell) for cell in cells[:-1]):
                continue
            name = label if test == "test" else f"{test}: {label}"
            got = [self._ours(cell) for cell in cells]
            printed = [Value("-" if cell.published is None else text_of(cell.published)) for cell in cells]
            apart = [Value(cell_text([] if (d := cell.difference) is None else [d], 1, signed=True)) for cell in cells]
            if any(cell.got for cell in cells):
                ours.setdefault(test, []).append(len(lines))
            every = {name: got, f"{name}, published": printed, f"{name}, difference": apart}
            lines += [[title, *own] for title, own in every.items() if {cell.text for cell in own} - {"-"}]
        contests: list[Contest] = [(rows, test not in MEASURES) for test, rows in ours.items()]
        caption = f"{self.title}, {group}" if group else self.title
        header = [group or "accuracy (%)", *columns]
        return tabulated(header, lines, style, width, contests, caption) if lines else ""

    def _ours(self, cell: Cell) -> Value:
        return over_seeds(cell.got, self.seeds).with_spread(self.spread)

    def _source_block(self, style: str, width: int | None) -> str:
        """What each source prints, and what explains the differences between them and ours."""
        printed = {place for source in self.sources for place in source.numbers}
        filled = [(group, name) for group, names in self.places.items() for name in names if (group, name) in printed]
        summed = [place for place in filled if place[0] in OVERALL.values()] or filled
        facts = [fact for fact in FACTS if any(source.facts[fact] != NOT_SAID for source in self.sources)]
        lines: list[list[str | Value]] = []
        for source in self.sources:
            own = self.cells.get((source.method, "test"), {})
            cells: list[str | Value] = [
                self._ours(own.get(place, Cell())) if source.name == OURS else source.text(place) for place in summed
            ]
            lines.append([source.label, *cells, *(source.facts[fact] for fact in facts)])
        names = [name if group in OVERALL.values() else f"{group} {name}".strip() for group, name in summed]
        header = ["source by source", *names, *facts]
        return tabulated(header, lines, style, width, (), f"{self.title}, source by source")

    def _source_records(self) -> list[dict[str, Any]]:
        return [line for source in self.sources for line in source.records()]

    def records(self) -> list[dict[str, Any]]:
        """Every cell that holds something, flat; of a band the ends and what each source prints."""
        rows = []
        for (label, test), row in self.cells.items():
            for (group, column), cell in row.items():
                if not cell.got and cell.published is None:
                    continue
                mean, spread = self.spread.of(list(cell.got.values())) if cell.got else (None, None)
                band: dict[str, Any] = {}
                if isinstance(cell.published, Mapping):
                    low, high = ends_of(cell.published)
                    band = {"published_low": low, "published_high": high, "published_by": dict(cell.published)}
                rows.append(
                    {
                        "method": label,
                        "reading": test,
                        "data": group,
                        "column": column,
                        "mean": mean,
                        self.spread.key: spread,
                        "n": len(cell.got),
                        "seeds": list(cell.got),
                        "by_seed": {str(seed): value for seed, value in cell.got.items()},
                        "published": None if band else cell.published,
                        **band,
                        "difference": cell.difference,
                        "tolerance": None if cell.published is None or cell.misprint else self.tolerance,
                    }
                )
        return rows

    def checked(self) -> tuple[int, int]:
        """How many cells a check compares, and how many have a published number that is no known misprint."""
        rows = [row for row in self.records() if row["tolerance"] is not None]
        return sum(row["difference"] is not None for row in rows), len(rows)

    def outside(self) -> list[str]:
        """One line for each cell whose difference from the published number is larger than the tolerance."""
        return [
            f"{row['method']}, {row['reading']}, {row['data']}/{row['column']}: {row['mean']:.2f}, published "
            f"{_printed(row)}, difference {row['difference']:+.2f}, tolerance {row['tolerance']:g}"
            for row in self.records()
            if row["difference"] is not None
            and row["tolerance"] is not None
            and abs(row["difference"]) > row["tolerance"] + _ROUNDING
        ]


def _holds(cell: Cell) -> bool:
    return bool(cell.got) or cell.published is not None


def _printed(row: Mapping[str, Any]) -> str:
    """The published number of a line of `records`, or the ends of its band."""
    if row["published"] is not None:
        return f"{row['published']:g}"
    return f"{row['published_low']:g}..{row['published_high']:g}"


def build_cells(
    got: Mapping[Key, Mapping[Place, Mapping[int, float]]],
    places: Mapping[str, Sequence[str]],
    published: Mapping[str, Mapping[str, Mapping[str, Published]]],
    summary: str,
    left_out: Sequence[str] = (),
    misprints: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    overall: bool = True,
) -> tuple[dict[Key, dict[Place, Cell]], dict[str, list[str]]]:
    """All cells of a sheet, with summaries and measures, and the columns of each group.

    Args:
        got: row -> place -> seed -> accuracy.
        places: group -> columns that runs fill.
        published: method -> split or extra test -> "group/column" -> number, or source -> number.
        summary: how a group is summed up: `MEAN`, `HARMONIC` (of the columns base and new), or another title for the
            mean of the columns that are not in `left_out`; "": it is not, since not all of its columns are there.
        left_out: columns that a summary leaves out.
        misprints: method -> split or extra test -> "group/column" of published numbers that are known to be wrong.
        overall: whether the groups are all of the published ones, so that a summary over them is a published one, too.
    """
    overall = overall and bool(summary) and len(places) > 1
    keys = dict.fromkeys([*got, *((label, test) for label, tests in published.items() for test in tests)])
    columns = {group: [*names, *([summary] if summary else [])] for group, names in places.items()}
    if overall:
        across = ["base", "new", HARMONIC] if summary == HARMONIC else [*places, summary]
        columns[OVERALL.get(summary, "Overall")] = across
    cells: dict[Key, dict[Place, Cell]] = {key: {} for key in keys}
    for key in keys:
        accuracies = {place: dict(by_seed) for place, by_seed in got.get(key, {}).items()}
        for group, names in places.items() if summary else ():
            counted = ["base", "new"] if summary == HARMONIC else [name for name in names if name not in left_out]
            accuracies[group, summary] = _combine([accuracies.get((group, name), {}) for name in counted], summary)
        if overall:
            accuracies |= _overall(accuracies, places, summary)
        for place, by_seed in accuracies.items():
            if by_seed:
                cells[key].setdefault(place, Cell()).got = by_seed
        label, test = key
        for text, value in published.get(label, {}).get(test, {}).items():
            group, _, column = text.partition("/")
            cell = cells[key].setdefault((group, column), Cell())
            cell.published, cell.misprint = value, text in (misprints or {}).get(label, {}).get(test, ())
    _add_measures(cells, places, summary)
    return cells, columns


def _combine(values: Sequence[Mapping[int, float]], summary: str) -> dict[int, float]:
    """The summary for each seed that has every value."""
    seeds = set.intersection(*map(set, values)) if values else set()
    combine = statistics.harmonic_mean if summary == HARMONIC else statistics.fmean
    return {seed: combine([value[seed] for value in values]) for seed in sorted(seeds)}


def _overall(
    accuracies: Mapping[Place, Mapping[int, float]], places: Mapping[str, Sequence[str]], summary: str
) -> dict[Place, dict[int, float]]:
    """Summaries over data sets: of base and new the averages and their harmonic mean, otherwise the mean of means."""
    group = OVERALL.get(summary, "Overall")
    if summary == HARMONIC:
        averages = {name: _combine([accuracies.get((g, name), {}) for g in places], MEAN) for name in ("base", "new")}
        averages[HARMONIC] = _combine([averages["base"], averages["new"]], HARMONIC)
        return {(group, name): values for name, values in averages.items()}
    each = {(group, name): dict(accuracies.get((name, summary), {})) for name in places}
    return each | {(group, summary): _combine(list(each.values()), MEAN)}


def _add_measures(cells: dict[Key, dict[Place, Cell]], places: Mapping[str, Sequence[str]], summary: str) -> None:
    """R, delta and Delta_NC of every method whose runs have the forms, in all places.

    Over data sets a measure is the mean of theirs, not the measure of the forms' means: R and delta are not linear.
    """
    group = OVERALL.get(summary, "Overall")
    for label in dict.fromkeys(label for label, _ in cells):
        for measure, (forms, combine) in MEASURES.items():
            rows = [cells[label, form] for form in forms if (label, form) in cells]
            if len(rows) < len(forms):
                continue
            values: dict[Place, dict[int, float]] = {}
            for place in rows[0]:
                by_form = [row[place].got if place in row else {} for row in rows]
                seeds = sorted(set.intersection(*map(set, by_form)))
                values[place] = {seed: combine(*(form[seed] for form in by_form)) for seed in seeds}
            if (group, summary) in values:
                values[group, summary] = _combine([values.get((name, summary), {}) for name in places], MEAN)
            target = cells.setdefault((label, measure), {})
            for place, by_seed in values.items():
                if by_seed:
                    target.setdefault(place, Cell()).got = by_seed
