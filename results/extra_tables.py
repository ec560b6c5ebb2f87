"""Tables of the extra tests of runs, beside those of the tested split.

A record's `metrics` hold the split that was tested (`test`) and any number of extra tests by name, such as `C` (a form
of the prompt), `4-shot` (a probe) or `FGSM / C` (an attack); these have a table of their own. Over the prompt forms C,
CP and PC it has the measures of how much the prompt matters (Cai et al., ECCV 2024, Table 4): `R`, the range; `delta`,
the population standard deviation; and `Delta_NC`, what four tokens of noise before the class name cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from .diagnosis import FORMS, READ_OFF, TIED, TIED_BY_CHANCE
from .groups import MEAN, Group, Record, Row, column_of
from .rendering import Contest, Table, Value, over_seeds
from .tables import group_facts, group_title, header_lines, legend

SPLITS = ("test", "val", "train")
MEASURES: Mapping[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "R": (tuple(FORMS), lambda *forms: max(forms) - min(forms)),
    "delta": (tuple(FORMS), lambda *forms: statistics.pstdev(forms)),
    "Delta_NC": (("C", "NC"), lambda plain, noisy: plain - noisy),
}
SHARES = (TIED, TIED_BY_CHANCE, READ_OFF)  # of errors and of classes: no accuracies, so none is the best
Cells = Mapping[str, Mapping[int, float]]  # domain (and `MEAN`) -> seed -> accuracy


def further_tests(record: Record) -> list[str]:
    """The extra tests of a run by name; batches, streams and orders have tables of their own (`scenarios.py`)."""
    cases = record.get("scenarios", {}).get("cases", ())
    return [name for name in record["metrics"] if name not in SPLITS and name not in cases]


def extra_test_tables(
    groups: Sequence[Group],
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Table]:
    """One table for each group whose runs have extra tests; rows, columns and seeds as in `method_table`."""
    tables = (_extra_test_table(group, rows, columns, seeds) for group in groups)
    return [table for table in tables if table.rows]


def _extra_test_table(
    group: Group, rows: Sequence[Row] | None, columns: Sequence[str] | None, seeds: Sequence[int] | None
) -> Table:
    """The extra tests of a group's runs: a line for each test and method, then the measures over the prompt forms."""
    seeds = list(seeds) if seeds is not None else group.seeds
    domains = list(columns) if columns is not None else group.domains
    header = [*domains, MEAN]
    tests = dict.fromkeys(name for record in group.records() for name in further_tests(record))
    results = {
        row: {name: _test_cells(group, row, name, domains, seeds) for name in tests}
        for row in (group.rows if rows is None else rows)
        if row in group.runs
    }
    results = {row: cells for row, cells in results.items() if any(cells.values())}

    def line(name: str, row: Row, cells: Cells) -> list[str | Value]:
        return [f"{name}: {row.label}", *(over_seeds(cells.get(d, {}), len(seeds)) for d in header)]

    lines: list[list[str | Value]] = []
    contests: list[Contest] = []
    for name in tests:
        first = len(lines)
        lines += [line(name, row, results[row][name]) for row in results if results[row][name]]
        if name not in SHARES:
            contests.append((range(first, len(lines)), True))
    for measure, (needed, combine) in MEASURES.items():
        first = len(lines)
        for row in results:
            forms = [results[row].get(name, {}) for name in needed]
            if all(forms):
                cells = {
                    domain: {
                        seed: combine(*(form[domain][seed] for form in forms))
                        for seed in forms[0][domain]
                        if all(seed in form[domain] for form in forms)
                    }
                    for domain in header
                }
                lines.append(line(measure, row, cells))
        contests.append((range(first, len(lines)), False))  # they say how much the prompt matters
    notes = {
        f"{row.label}: {note}" for row in results for run in group.records(row) for note in run.get("reading_notes", [])
    }
    title = f"{group_title(group)}: extra tests"
    above, below = header_lines(group, list(results), seeds), legend(group, list(results)) + sorted(notes)
    unit = "%" if any(name in SHARES for name in tests) else "accuracy (%)"
    return Table(title, above, [unit, *header], lines, below, group_facts(group), contests)


def test_table(records: Sequence[Record]) -> Table:
    """The further tests of one method's runs, a line per test: the columns are the domains, then their mean."""
    facts, domains = records[0], [column_of(record) for record in records]
    lines = []
    for name in dict.fromkeys(name for record in records for name in further_tests(record)):
        values = [record["metrics"].get(name, {}).get("accuracy") for record in records]
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append([name, *shown, "-" if None in values else f"{statistics.fmean(values):.1f}"])
    backbone = f"backbone: {facts['backbone']['name']} (weights {facts['backbone']['weights_hash'][:12]})"
    notes = sorted({note for record in records for note in record.get("reading_notes", [])})
    return Table(f"{facts['dataset']}, task {facts['task']}", [backbone, *notes], ["%", *domains, MEAN], lines, [])


def _test_cells(group: Group, row: Row, name: str, domains: Sequence[str], seeds: Sequence[int]) -> Cells:
    """Accuracies of an extra test, `MEAN` for the seeds that have every domain; {} if no run has the test."""
    cells = {
        domain: {
            seed: run["metrics"][name]["accuracy"]
            for seed, run in sorted(group.runs[row].get(domain, {}).items())
            if seed in seeds and name in run["metrics"]
        }
        for domain in domains
    }
    if not any(cells.values()):
        return {}
    complete = [seed for seed in seeds if all(seed in cell for cell in cells.values())]
    return cells | {MEAN: {seed: statistics.fmean(cells[domain][seed] for domain in domains) for seed in complete}}
