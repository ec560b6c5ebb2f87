"""Tables from run records alone: methods by target domains, mean and spread over seeds, gains over a reference.

The spread is the sample standard deviation over seeds (divisor n - 1); the figure in the mean column is, for each seed,
the mean over the domains, then mean and spread of those figures over seeds. Gains are differences of runs of the same
domain and seed.

A record's `metrics` hold the split that was tested (`test`) and any number of extra tests by name, such as `C` (a form
of the prompt), `4-shot` (a probe) or `FGSM / C` (an attack); these have a table of their own. Over the prompt forms C,
CP and PC it has the measures of how much the prompt matters (Cai et al., ECCV 2024, Table 4): `R`, the range; `delta`,
the population standard deviation; and `Delta_NC`, what four tokens of noise before the class name cost.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from .diagnosis import FORMS
from .errors import UserError
from .escaping import csv_text, markdown, one_line
from .groups import MEAN, Group, Record, Row, column_of
from .protocols import SCENARIO_TASKS, protocols
from .run_data import NOT_RECORDED, described

FORMATS = ("text", "markdown", "latex", "csv", "json")
STYLES = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}  # tabulate's names
SPLITS = ("test", "val", "train")
MEASURES: Mapping[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "R": (tuple(FORMS), lambda *forms: max(forms) - min(forms)),
    "delta": (tuple(FORMS), lambda *forms: statistics.pstdev(forms)),
    "Delta_NC": (("C", "NC"), lambda plain, noisy: plain - noisy),
}
Cells = Mapping[str, Mapping[int, float]]  # domain (and `MEAN`) -> seed -> accuracy


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None for fewer than two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def cell_text(values: Sequence[float], seeds: int, signed: bool = False) -> str:
    """`61.2 +/- 0.8`, with `(n=2)` if there are fewer than `seeds` values, `-` if there is none."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    mean = round(mean, 1) + 0.0  # no "-0.0"
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    text += "" if spread is None else f" +/- {spread:.1f}"
    return text if len(values) == seeds else f"{text} (n={len(values)})"


@dataclass
class Table:
    """A table ready to be printed: lines above, header, rows of texts, lines below."""

    title: str
    above: list[str]
    columns: list[str]
    rows: list[list[str]]
    below: list[str]

    def render(self, style: str = "text") -> str:
        """The table as text in a style of `FORMATS`; CSV holds the rows alone."""
        check_style(style)
        if style == "json":
            rows = [dict(zip(self.columns, row)) for row in self.rows]
            sheet = {"title": self.title, "about": self.above, "rows": rows, "notes": self.below}
            return json.dumps(sheet, indent=1, ensure_ascii=False)
        if style == "csv":
            return csv_text([self.columns, *self.rows]).rstrip("\n")
        return framed(self.title, self.above, tabulated(self.columns, self.rows, style), self.below, style)


def check_style(style: str) -> None:
    """Refuse a style that is none of `FORMATS`."""
    if style not in FORMATS:
        raise UserError(f"unknown table format '{style}': expected one of {', '.join(FORMATS)}")


def tabulated(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Header and rows of texts as text, Markdown or LaTeX, the first column to the left; every cell is as it is."""
    escape = markdown if style == "markdown" else one_line  # tabulate escapes LaTeX itself
    head, *body = [[escape(cell) for cell in row] for row in (columns, *rows)]
    align = ("left", *["right"] * (len(columns) - 1))
    return str(tabulate(body, head, tablefmt=STYLES[style], colalign=align, disable_numparse=True))


def framed(title: str, above: Sequence[str], body: str, below: Sequence[str], style: str) -> str:
    """A table with the lines around it, as text, Markdown or LaTeX (where they are comments)."""
    escape = markdown if style == "markdown" else one_line
    title, above, below = escape(title), [escape(line) for line in above], [escape(line) for line in below]
    if style == "text":
        return "\n".join([title, *above, "", body, *below])
    if style == "markdown":
        parts = [f"**{title}**", "  \n".join(above), body, "\n".join(f"- {line}" for line in below)]
        return "\n\n".join(part for part in parts if part).replace("+/-", "±")
    comments = ["\n".join(f"% {line}" for line in lines) for lines in ([title, *above], below)]
    body = body.replace("+/-", "$\\pm$")
    return "\n".join(part for part in (comments[0], body, comments[1]) if part)


def method_table(
    group: Group,
    reference: str = "",
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Table:
    """Methods (rows) by target domains and their mean (columns), with the gain of each row over a reference.

    Args:
        group: runs that may share a table.
        reference: method of the reference row, or its whole label `Method (config)`; no gains where no row is it.
        rows: the rows wanted, in this order; default: all, the reference first.
        columns: the domains wanted, in this order; default: all by name.
        seeds: the seeds wanted; default: all that occur.
    """
    seeds = list(seeds) if seeds is not None else group.seeds
    domains = list(columns) if columns is not None else group.domains
    base = next((row for row in group.rows if reference in row.names), None)
    rows = list(rows) if rows is not None else sorted(group.rows, key=lambda row: row != base)
    wanted = group.selected(domains, seeds)
    header = ["accuracy (%)", *domains, MEAN]
    lines, gains = [], []
    for row in rows:
        cells = [wanted.accuracies(row, name) if row in wanted.runs else {} for name in header[1:]]
        lines.append([row.label, *(cell_text(list(cell.values()), len(seeds)) for cell in cells)])
        if base is None or row == base:
            continue
        against = [wanted.accuracies(base, name) for name in header[1:]]
        pairs = [[cell[seed] - ref[seed] for seed in cell if seed in ref] for cell, ref in zip(cells, against)]
        gains.append([f"gain of {row.label}", *(cell_text(pair, len(seeds), signed=True) for pair in pairs)])
    shown = [*header[:-1], group.summary_name]
    below = footnotes(wanted, rows, domains, seeds)
    return Table(group_title(group), header_lines(wanted, rows, seeds, base), shown, lines + gains, below)


def target_table(group: Group, row: Row) -> Table:
    """One method's runs: a line a target domain with accuracy for each seed, mean and spread, then their mean."""
    seeds = group.seeds
    lines = []
    for name in [*group.domains, MEAN]:
        cell = group.accuracies(row, name)
        each = [f"{cell[seed]:.1f}" if seed in cell else "-" for seed in seeds]
        lines.append([name, *each, cell_text(list(cell.values()), len(seeds))])
    header = ["target", *(f"seed {seed}" for seed in seeds), "accuracy (%)"]
    if len(seeds) == 1:
        header, lines = ["target", "accuracy (%)"], [[line[0], line[-1]] for line in lines]
    below = _missing(group, [row], group.domains, seeds) + group.remarks
    return Table(f"{row.label}: {group_title(group)}", header_lines(group, [row], seeds), header, lines, below)


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

    def line(name: str, row: Row, cells: Cells) -> list[str]:
        return [f"{name}: {row.label}", *(cell_text(list(cells.get(d, {}).values()), len(seeds)) for d in header)]

    lines = [line(name, row, results[row][name]) for name in tests for row in results if results[row][name]]
    for measure, (needed, combine) in MEASURES.items():
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
    notes = {
        f"{row.label}: {note}" for row in results for run in group.records(row) for note in run.get("reading_notes", [])
    }
    title = f"{group_title(group)}: extra tests"
    return Table(title, header_lines(group, list(results), seeds), ["accuracy (%)", *header], lines, sorted(notes))


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


def group_title(group: Group) -> str:
    """Data set, task and split."""
    facts = group.facts
    return f"{facts['dataset']}, task {facts['task'] or 'by hand'}, {facts['split']} images"


def header_lines(group: Group, rows: Sequence[Row], seeds: Sequence[int], base: Row | None = None) -> list[str]:
    """The lines that say what was measured."""
    facts = group.facts
    records = {row: group.records(row) for row in rows}
    runs = [run for row in rows for run in records[row]]
    weights = f" (weights {facts['weights_hash'][:12]})" if facts["weights_hash"] else ""
    shots = f"{facts['shots']} per class" if facts["shots"] > 0 else "all"
    if facts["shots"] < 1 and not any(run["num_train"] for run in runs):
        shots = "none"
    protocol, training = f"protocol: {'; '.join(sorted(protocols(runs)))}", f"training images: {shots}"
    if facts["task"] in SCENARIO_TASKS:
        used = {row: [{"used": shots if run["num_train"] else "none"} for run in records[row]] for row in rows}
        training = f"training images: {_by_row(used, 'used')}"
    if facts["trained_on"]:
        targets = sorted({f"{run['dataset']}/{column_of(run)}" for run in runs})
        protocol = f"protocol: evaluation: trained on {facts['trained_on']}; tested on {', '.join(targets)}"
        if not any(run.get("trained", {}).get("dataset") == run["dataset"] for run in runs):
            training = "training images: none of this data set"
    listed = ", ".join(map(str, seeds))
    lines = [
        protocol,
        f"{training}; classes: {facts['class_subset']}; backbone: {facts['backbone'] or '-'}{weights}",
        f"selection rule: {_by_row(records, 'selection_rule')}",
        f"prompt: {_by_row(records, 'prompt')}",
        f"seeds: {listed}" + ("; cells: mean +/- sample standard deviation over seeds" if len(seeds) > 1 else ""),
    ]
    tested = {
        column: f"{column} {run['metrics'][facts['split']]['total']:,}"
        for row in rows
        for column, runs in group.runs.get(row, {}).items()
        for run in runs.values()
        if not run["target_domains"]  # nothing else says which part of such a data set a cell is of
    }
    if tested:
        lines.insert(1, f"tested images: {', '.join(tested.values())}")
    transductive = [row.label for row in rows if any(run["transductive"] for run in records[row])]
    if transductive:
        lines.append(f"transductive (uses unlabelled test images): {', '.join(transductive)}")
    if facts["data"] == NOT_RECORDED:
        lines.append(f"{NOT_RECORDED}: these records do not say which images they are of")
    elif group.variants > 1:
        images = {column_of(run): described(run.get("data") or {}) for run in runs}
        each = ", ".join(f"{column}: {text}" for column, text in sorted(images.items()))
        lines.append(f"images: {each}; runs on other images of {facts['dataset']} stand in another table")
    if base is not None:
        lines.append(f"gains: over {base.label}, same domain and seed")
    return lines


def _by_row(records: Mapping[Row, Sequence[Record]], key: str) -> str:
    """A fact once if all rows share it, otherwise with the rows that have it."""
    owners: dict[str, list[str]] = {}
    for row, runs in records.items():
        for value in sorted({run[key] for run in runs}):
            owners.setdefault(value or "none", []).append(row.label)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{value} [{', '.join(labels)}]" for value, labels in owners.items())


def footnotes(group: Group, rows: Sequence[Row], domains: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The lines below a table of methods: what is missing, and what a reader must know of its runs."""
    return _missing(group, rows, domains, seeds) + _unlike(group, rows) + _trained_on(group, rows) + group.remarks


def _missing(group: Group, rows: Sequence[Row], domains: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """One line for each row with cells that no record fills."""
    lines = []
    for row in rows:
        cells = group.runs.get(row, {})
        gaps = {name: ", ".join(str(seed) for seed in seeds if seed not in cells.get(name, {})) for name in domains}
        named = [f"{name} (seed {absent})" for name, absent in gaps.items() if absent]
        lines += [f"missing: {row.label}: {'; '.join(named)}"] if named else []
    return lines


def _trained_on(group: Group, rows: Sequence[Row]) -> list[str]:
    """One line for each cell of an evaluation that tested images which its run had trained on."""
    return [
        f"caution: {domain}, seed {seed}: {run['tested_training_images']} of the tested images of {row.label} were "
        "trained on"
        for row in rows
        for domain, runs in group.runs.get(row, {}).items()
        for seed, run in runs.items()
        if run.get("tested_training_images")
    ]


def _unlike(group: Group, rows: Sequence[Row]) -> list[str]:
    """One line for each domain and seed in which the rows did not see the same images, such as other draws of shots."""
    prints: dict[tuple[str, int], dict[str, list[str]]] = {}
    for row in rows:
        for domain, runs in group.runs.get(row, {}).items():
            for seed, run in runs.items():
                if run["data_fingerprint"]:
                    cell = prints.setdefault((domain, seed), {})
                    cell.setdefault(run["data_fingerprint"], []).append(row.label)
    return [
        f"caution: {domain}, seed {seed}: not the same images in {' and '.join(map(', '.join, cell.values()))}"
        for (domain, seed), cell in prints.items()
        if len(cell) > 1
    ]
