"""What the rows of a table cost: learned parameters, seconds and memory, and what each method was seen to read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .budgets import NOT_CHECKED, text_of
from .groups import Group, Record, Row
from .rendering import Table, Value
from .tables import group_facts, group_title

NOTE = (
    "means over runs; seconds of training, in which features that the cache held cost nothing, and of testing; peak "
    "memory of the process, or of its GPU"
)


def cost_table(group: Group, rows: Sequence[Row] | None = None) -> Table:
    """A line for each row; `-` where the records do not say."""
    lines: list[list[str | Value]] = []
    for row in group.rows if rows is None else rows:
        if records := group.records(row) if row in group.runs else []:
            learned = [record["learned_parameters"] for record in records if "learned_parameters" in record]
            lines.append([
                f"cost of {row.label}",
                _value(learned),
                _value([record["seconds"]["train"] for record in records if "train" in record["seconds"]], digits=1),
                _value([record["seconds"]["test"] for record in records if "test" in record["seconds"]], digits=1),
                _value([record["peak_memory_mb"] for record in records]),
                _text(text_of(records)),
            ])  # fmt: skip
    header = ["cost", "learned parameters", "train (s)", "test (s)", "memory (MiB)", "reads"]
    return Table(f"{group_title(group)}: cost", [NOTE], header, lines, [], group_facts(group))


def has_costs(records: Sequence[Record]) -> bool:
    """Whether any record says how much was learned, or what was read."""
    return any("learned_parameters" in record or record.get("budget") for record in records)


def _value(values: Sequence[float], digits: int = 0) -> Value:
    if not values:
        return Value("-")
    mean = statistics.fmean(values)
    return Value(f"{mean:,.{digits}f}", (mean,), digits=digits)


def _text(text: str) -> Value:
    return Value("-" if text == NOT_CHECKED else text, more={"text": text})
