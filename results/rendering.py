"""Tables of numbers as text, Markdown, LaTeX, CSV and JSON.

Text fits the terminal (`layout.py`). LaTeX is a `table` for booktabs: in each column the best method is bold and the
second underlined, by the numbers as printed. CSV and JSON are for programs: a line for each cell, with numbers as
numbers.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tabulate import tabulate

from .errors import UserError
from .escaping import csv_text, latex, markdown
from .layout import text_table, text_width, wrapped

FORMATS = ("text", "markdown", "latex", "csv", "json")
Contest = tuple[Sequence[int], bool]  # rows that compete in each column, whether the higher number is better


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None for fewer than two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and DomainBed's error: the deviation with divisor n, over the root of n; None for fewer than two values."""
    error = statistics.pstdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


@dataclass(frozen=True)
class Spread:
    """What follows `+/-` in a cell of several seeds.

    Attributes:
        key: its name in CSV and JSON.
        text: what the cells of a table are.
        of: mean and spread of some values; no spread where there are too few.
    """

    key: str
    text: str
    of: Callable[[Sequence[float]], tuple[float, float | None]]


DEVIATION = Spread("std", "mean +/- sample standard deviation over seeds", mean_and_spread)
ERROR = Spread(
    "error", "mean +/- DomainBed's error over trials: deviation with divisor n, / sqrt(trials)", mean_and_error
)
SPREADS = {"deviation": DEVIATION, "error": ERROR}  # by the name that users give


def cell_text(values: Sequence[float], seeds: int, signed: bool = False, digits: int = 1) -> str:
    """`61.2 +/- 0.8`, with `(n=2)` if there are fewer than `seeds` values, `-` if there is none."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    mean = round(mean, digits) + 0.0  # no "-0.0"
    text = f"{mean:+.{digits}f}" if signed else f"{mean:.{digits}f}"
    text += "" if spread is None else f" +/- {spread:.{digits}f}"
    return text if len(values) == seeds else f"{text} (n={len(values)})"


@dataclass(frozen=True)
class Value:
    """What a cell prints, and its numbers.

    Attributes:
        text: What stands in the cell.
        numbers: One for each seed, or one that is of all of them; none in an empty cell.
        seeds: The seeds of the numbers.
        digits: Decimals that are printed.
        more: What CSV and JSON hold of the cell besides.
        spread: What the text has of several seeds.
    """

    text: str
    numbers: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    digits: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread = DEVIATION

    def with_spread(self, spread: Spread) -> Value:
        """The same cell with another spread after `+/-`, where it has one."""
        size = spread.of(self.numbers)[1] if self.numbers else None
        text = self.text if size is None else re.sub(r"\+/- [\d.]+", f"+/- {size:.{self.digits}f}", self.text)
        return replace(self, text=text, spread=spread)

    def facts(self) -> dict[str, Any]:
        """Mean, spread, number of seeds and seeds, as a line of CSV or JSON has them."""
        mean, spread = self.spread.of(self.numbers) if self.numbers else (None, None)
        known = len(self.seeds) if self.seeds or not self.numbers else None
        return {"mean": mean, self.spread.key: spread, "n": known, "seeds": list(self.seeds), **self.more}


def over_seeds(by_seed: Mapping[int, float], seeds: int, signed: bool = False, digits: int = 1) -> Value:
    """The cell of one number per seed; `seeds` of them were expected."""
    numbers = tuple(by_seed.values())
    return Value(cell_text(numbers, seeds, signed, digits), numbers, tuple(by_seed), digits)


@dataclass
class Table:
    """A table ready to be printed: lines above, header, rows of cells, lines below."""

    title: str
    above: list[str]
    columns: list[str]
    cells: Sequence[Sequence[str | Value]]
    below: list[str]
    facts: Mapping[str, Any] = field(default_factory=dict)  # what all cells share, for CSV and JSON
    contests: Sequence[Contest] = ()  # for LaTeX

    @property
    def rows(self) -> list[list[str]]:
        """The cells as texts."""
        return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in self.cells]

    def with_spread(self, spread: Spread) -> Table:
        """The same table with another spread in its cells, which the lines above say."""
        cells = [[cell if isinstance(cell, str) else cell.with_spread(spread) for cell in row] for row in self.cells]
        above = [line.replace(DEVIATION.text, spread.text) for line in self.above]
        return replace(self, cells=cells, above=above)

    def render(self, style: str = "text", header: bool = True, width: int | None = None) -> str:
        """The table as text in a style of `FORMATS`; `width` of text is the terminal's by default, 120 at most."""
        return render_tables([self], style, header, width)

    def records(self) -> list[dict[str, Any]]:
        """Every cell that holds something, flat; a gap has no mean."""
        shared = {"table": self.title, **self.facts, "metric": self.columns[0]}
        return [
            {**shared, "row": row[0], "column": column, **(cell if isinstance(cell, Value) else Value(cell)).facts()}
            for row, cells in zip(self.rows, self.cells)
            for column, text, cell in zip(self.columns[1:], row[1:], cells[1:])
            if text
        ]


def render_tables(tables: Sequence[Table], style: str = "text", header: bool = True, width: int | None = None) -> str:
    """Several tables, one below another; CSV has the cells of all under one header, JSON a list of tables.

    Raises:
        UserError: an unknown format.
    """
    check_style(style)
    if style == "csv":
        return csv_lines([line for table in tables for line in table.records()])
    if style == "json":
        return json_text([_tree(table, header) for table in tables])
    parts: list[str] = []
    for table in tables:
        caption = f"{table.title}: {table.columns[0]}" if table.columns[0] else table.title
        body = tabulated(table.columns, table.cells, style, width, table.contests, caption)
        parts.append(framed(table.title, table.above if header else [], body, table.below, style, width))
    return unlike_labels("\n\n".join(parts))


def _tree(table: Table, header: bool) -> dict[str, Any]:
    cells = [{key: value for key, value in line.items() if key != "table"} for line in table.records()]
    for line in cells:
        for key in table.facts:
            del line[key]
    about = {"about": table.above} if header else {}
    return {"title": table.title, **about, "facts": dict(table.facts), "cells": cells, "notes": table.below}


def check_style(style: str) -> None:
    """Refuse a style that is none of `FORMATS`."""
    if style not in FORMATS:
        raise UserError(f"unknown table format '{style}': expected one of {', '.join(FORMATS)}")


def json_text(tree: Any) -> str:
    """A tree as JSON."""
    return json.dumps(tree, indent=1, ensure_ascii=False)


def csv_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    """Flat records as CSV under one header; lists stand as `1 2 3`, and what a record lacks is empty."""
    columns = list(dict.fromkeys(key for line in lines for key in line))

    def cell(value: Any) -> Any:
        if isinstance(value, Mapping):
            return json.dumps(value)
        return " ".join(map(str, value)) if isinstance(value, list) else value

    return csv_text([columns, *([cell(line.get(key)) for key in columns] for line in lines)]).rstrip("\n")


def tabulated(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Value]],
    style: str,
    width: int | None = None,
    contests: Sequence[Contest] = (),
    caption: str = "",
) -> str:
    """Header and rows as text, Markdown or a LaTeX table, the first column to the left; every cell is as it is."""
    texts = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in rows]
    if style == "text":
        return text_table(columns, texts, width or text_width())
    if style == "latex":
        return _latex_table(columns, rows, texts, contests, caption)
    head, *body = [[markdown(cell) for cell in row] for row in (columns, *texts)]
    align = ("left", *["right"] * (len(columns) - 1))
    return str(tabulate(body, head, tablefmt="pipe", colalign=align, disable_numparse=True))


def framed(
    title: str, above: Sequence[str], body: str, below: Sequence[str], style: str, width: int | None = None
) -> str:
    """A table with the lines around it, as text, Markdown or LaTeX (where they are comments)."""
    if style == "markdown":
        title, above, below = markdown(title), [*map(markdown, above)], [*map(markdown, below)]
        parts = [f"**{title}**", "  \n".join(above), body, "\n".join(f"- {line}" for line in below)]
        return "\n\n".join(part for part in parts if part).replace("+/-", "±")
    size, start = width or text_width(), "% " if style == "latex" else ""
    head, foot = [
        "\n".join(line for text in texts for line in wrapped(text, size, start)) for texts in ([title, *above], below)
    ]
    if style == "text":
        return f"{head}\n\n{body}" + (f"\n{foot}" if foot else "")
    return "\n".join(part for part in (head, body, foot) if part)


def _latex_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Value]],
    texts: Sequence[Sequence[str]],
    contests: Sequence[Contest],
    caption: str,
) -> str:
    """A `table` for booktabs."""
    marks = places(rows, contests)
    body = [[latex(cell).replace("+/-", "$\\pm$") for cell in line] for line in (columns, *texts)]
    for (row, column), mark in marks.items():
        body[row + 1][column] = f"\\{mark}{{{body[row + 1][column]}}}"
    head, *lines = [" & ".join(line) + " \\\\" for line in body]
    sentences = [caption]
    several = (cell.spread.text for row in rows for cell in row if isinstance(cell, Value) and len(cell.numbers) > 1)
    if text := next(several, ""):
        sentences.append(f"Cells: {text}")
    if marks:
        lowest = "" if any(higher for _, higher in contests) else " (lowest)"
        sentences.append(f"Best{lowest} in bold, second underlined")
    text = latex(". ".join(sentences)).replace("+/-", "$\\pm$")
    slug = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")
    above = ["\\begin{table}", "\\centering", f"\\caption{{{text}.}}", f"\\label{{tab:{slug}}}"]
    frame = [f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", "\\toprule", head, "\\midrule"]
    return "\n".join([*above, *frame, *lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"])


def places(rows: Sequence[Sequence[str | Value]], contests: Sequence[Contest]) -> dict[tuple[int, int], str]:
    """Row and column of each best cell (`textbf`) and second one (`underline`), by the means as printed."""
    marks = {}
    for competing, higher in contests:
        for column in range(1, len(rows[0])):
            means = {}
            for row in competing:
                cell = rows[row][column]
                if isinstance(cell, Value) and cell.numbers:
                    means[row] = round(statistics.fmean(cell.numbers), cell.digits)
            levels = sorted(set(means.values()), reverse=higher)[:2] if len(means) > 1 else []
            for row, mean in means.items():
                if mean in levels:
                    marks[row, column] = ("textbf", "underline")[levels.index(mean)]
    return marks


def unlike_labels(text: str) -> str:
    """LaTeX in which no two tables have one label: the second of one name ends with `-2`."""
    counts: dict[str, int] = {}

    def label(found: re.Match[str]) -> str:
        counts[found[1]] = counts.get(found[1], 0) + 1
        return found[0] if counts[found[1]] == 1 else f"\\label{{{found[1]}-{counts[found[1]]}}}"

    return re.sub(r"^\\label\{(tab:[a-z0-9-]*)\}$", label, text, flags=re.MULTILINE)
