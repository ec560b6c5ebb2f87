"""Tables from run records alone: methods by target domains, mean and spread over seeds, gains over a reference.

The spread is the sample standard deviation over seeds (divisor n - 1); the figure in the mean column is, for each seed,
the mean over the domains, then mean and spread of those figures over seeds. Gains are differences of runs of the same
domain and seed. Records of different tasks, data sets, shots, class subsets, backbones or weights never share a table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tabulate import tabulate

from .errors import UserError
from .escaping import csv_text, markdown, one_line
from .records import TRANSFER_TASKS, FoundRecord, protocol_of, trained_on
from .run_data import NOT_RECORDED, described

FORMATS = ("text", "markdown", "latex", "csv", "json")
STYLES = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}  # tabulate's names
MEAN = "mean"
SUMMARIES = {"b2n": "HM", "xd": "mean of targets", "dg": "mean of targets"}  # title of the last column by task


@dataclass(frozen=True)
class Row:
    """One method in one configuration; `config` "" stands for a run without a named configuration."""

    method: str
    config: str

    @property
    def label(self) -> str:
        """`GOPro (icons)`."""
        return f"{self.method} ({self.config})" if self.config else self.method


def refined_row(method: str, config: str, base_method: str, base_config: str) -> Row:
    """The row of a method that refined the runs of another: `GOPro + InMaP (icons)`."""
    configs = base_config if config == base_config else " + ".join(filter(None, (base_config, config)))
    return Row(f"{base_method} + {method}", configs)


def named(row: Row, names: Mapping[Row, str]) -> Row:
    """A row under the name that it was given, or as it is."""
    return Row(names[row], "") if row in names else row


def row_of(record: Mapping[str, Any]) -> Row:
    """The row that a run stands in."""
    base = record.get("refines")
    if not base:
        return Row(record["method"], record["config"])
    return refined_row(record["method"], record["config"], base["method"], base["config"])


@dataclass
class Group:
    """Runs that may stand in one table.

    Attributes:
        facts: what all of them share: task, dataset, shots, class_subset, backbone, weights_hash, split, trained_on (of
            evaluations), data (a name for the data set's domains and classes).
        runs: row -> domain -> seed -> record.
        remarks: what a reader of the table must know of its records.
        variants: number of groups that would share a table if their images were the same.
    """

    facts: dict[str, Any]
    runs: dict[Row, dict[str, dict[int, Mapping[str, Any]]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    variants: int = 1

    def renamed(self, names: Mapping[Row, str]) -> Group:
        """The same runs with other names for some rows."""
        return replace(self, runs={named(row, names): cells for row, cells in self.runs.items()})

    @property
    def rows(self) -> list[Row]:
        """The methods, by name."""
        return sorted(self.runs, key=lambda row: (row.method.lower(), row.config))

    @property
    def domains(self) -> list[str]:
        """The target domains (or class subsets) of any row, by name."""
        return sorted({domain for cells in self.runs.values() for domain in cells})

    @property
    def seeds(self) -> list[int]:
        """The seeds of any run, in order."""
        return sorted({seed for cells in self.runs.values() for runs in cells.values() for seed in runs})

    def accuracies(self, row: Row, domain: str) -> dict[int, float]:
        """Seed -> accuracy in percent of one cell; for the column `MEAN`, of the seeds that have every domain."""
        split = self.facts["split"]
        if domain != MEAN:
            return {
                seed: record["metrics"][split]["accuracy"] for seed, record in self.runs[row].get(domain, {}).items()
            }
        columns = [self.accuracies(row, name) for name in self.averaged]
        seeds = set.intersection(*(set(column) for column in columns)) if columns else set()
        return {seed: self.summary([column[seed] for column in columns]) for seed in sorted(seeds)}

    @property
    def averaged(self) -> list[str]:
        """The columns that the last one sums up: all, but the source data set's where others are tested."""
        if self.facts["task"] == "b2n":
            return ["base", "new"]
        across = self.facts["task"] in TRANSFER_TASKS
        return [name for name in self.domains if not (across and name == self.facts["dataset"])]

    @property
    def summary(self) -> Callable[[Sequence[float]], float]:
        """How the last column sums up: the harmonic mean of base and new classes, otherwise the mean."""
        return statistics.harmonic_mean if self.facts["task"] == "b2n" else statistics.fmean

    @property
    def summary_name(self) -> str:
        """Title of the last column."""
        return SUMMARIES.get(self.facts["task"], MEAN)


def group_records(found: Iterable[Mapping[str, Any]], split: str = "test") -> list[Group]:
    """Sort records into groups that may share a table.

    Runs of different data sets, tasks, shots, class subsets or weights never do; nor do evaluations of a checkpoint
    with runs that were trained, or runs whose images differ: in each column of a group all runs had the same images to
    choose from and tested the same ones. Of two records of one cell and seed the one finished later counts, and the
    group says so.

    Args:
        found: complete records; `folder`, if it is there, names the record in remarks.
        split: the split whose metrics are wanted; records without it are left out.
    """
    groups: dict[tuple[Any, ...], list[Group]] = {}
    for record in sorted(found, key=lambda record: record["finished_at"]):
        if split not in record["metrics"]:
            continue
        facts = {key: record[key] for key in ("task", "dataset", "shots", "class_subset")}
        data, across = record.get("data"), record["task"] in TRANSFER_TASKS
        if across:  # one table for the trained run and those that evaluate it
            facts["dataset"] = record.get("source_dataset", record["dataset"])
            facts["class_subset"] = "base and new" if record["task"] == "b2n" else "all"
        facts |= {"backbone": record["backbone"]["name"], "weights_hash": record["backbone"]["weights_hash"]}
        facts["split"] = split
        facts["trained_on"] = _trained_elsewhere(record, facts["dataset"])
        facts["data"] = NOT_RECORDED if data is None else "" if across else data.get("names", "")
        row, column, seed = row_of(record), column_of(record), record["seed"]
        fitting = groups.setdefault(tuple(facts.values()), [])
        group = next((group for group in reversed(fitting) if _same_images(group, column, record)), None)
        if group is None:
            group = Group(facts)
            fitting.append(group)
        cell = group.runs.setdefault(row, {}).setdefault(column, {})
        if seed in cell and (told := _two_records(row, column, cell[seed], record, split)):
            group.remarks.append(told)
        cell[seed] = record
    for fitting in groups.values():
        for group in fitting:
            group.variants = len(fitting)
    return [group for key in sorted(groups, key=str) for group in groups[key]]


def _trained_elsewhere(record: Mapping[str, Any], source: str) -> str:
    """What an evaluated checkpoint was trained on; "" for a trained run, and where the task itself says it."""
    if not record.get("evaluated_from"):
        return ""
    trained = record.get("trained", {})
    expected = {"b2n": "base", "xd": "all", "dg": "all"}.get(record["task"])
    if expected and (trained.get("dataset"), trained.get("class_subset")) == (source, expected):
        return ""
    return trained_on(trained)


def _same_images(group: Group, column: str, record: Mapping[str, Any]) -> bool:
    """Whether a record had the same images to choose from, and tested the same, as those of its column in a group."""
    data = record.get("data") or {}
    for cells in group.runs.values():
        for other in cells.get(column, {}).values():
            theirs = other.get("data") or {}
            if not data or not theirs:
                continue
            drawn = data.get("drawn_tests") and other["split_seed"] != record["split_seed"]
            if data["listing"] != theirs["listing"] or (data["test"] != theirs["test"] and not drawn):
                return False
    return True


def _two_records(row: Row, column: str, old: Mapping[str, Any], new: Mapping[str, Any], split: str) -> str:
    """A remark on two records of one cell and seed; "" where one is a copy of the other."""
    own = {"folder"}
    if {k: v for k, v in old.items() if k not in own} == {k: v for k, v in new.items() if k not in own}:
        return ""
    each = [
        f"{run['metrics'][split]['accuracy']:.1f} (finished {run['finished_at']}"
        + (f", {run['folder']})" if "folder" in run else ")")
        for run in (old, new)
    ]
    where = f"{row.label}, {column}, seed {new['seed']}"
    return f"caution: two records of one cell differ: {where}: {each[0]} and {each[1]}; the latter is shown"


def column_of(record: Mapping[str, Any]) -> str:
    """The column of a run: its target domains, or its class subset where a data set has no domains."""
    if record["task"] in ("xd", "dg"):
        return str(record["dataset"])
    return "+".join(record["target_domains"]) or str(record["class_subset"])


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
        """The table as text.

        Args:
            style: one of `FORMATS`; CSV holds the rows alone.

        Raises:
            UserError: unknown style.
        """
        if style not in FORMATS:
            raise UserError(f"unknown table format '{style}': expected one of {', '.join(FORMATS)}")
        if style == "json":
            rows = [dict(zip(self.columns, row)) for row in self.rows]
            sheet = {"title": self.title, "about": self.above, "rows": rows, "notes": self.below}
            return json.dumps(sheet, indent=1, ensure_ascii=False)
        if style == "csv":
            return csv_text([self.columns, *self.rows]).rstrip("\n")
        return framed(self.title, self.above, tabulated(self.columns, self.rows, style), self.below, style)


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
    broken: Iterable[FoundRecord] = (),
) -> Table:
    """Methods (rows) by target domains and their mean (columns), with the gain of each row over a reference.

    Args:
        group: runs that may share a table.
        reference: method of the reference row, or its whole label `ZeroshotCLIP (icons)`; "" for no gains.
        rows: the rows wanted, in this order; default: all, the reference first.
        columns: the domains wanted, in this order; default: all by name.
        seeds: the seeds wanted; default: all that occur.
        broken: folders whose record could not be used; named below the table.

    Raises:
        UserError: no row is the reference.
    """
    seeds = list(seeds) if seeds is not None else group.seeds
    domains = list(columns) if columns is not None else group.domains
    base = _reference(group, reference) if reference else None
    rows = list(rows) if rows is not None else sorted(group.rows, key=lambda row: row != base)
    wanted = _select(group, domains, seeds)
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
    below = _missing(wanted, rows, domains, seeds) + _unlike(wanted, rows) + group.remarks
    below += [f"{item.state}: {item.folder}: {item.reason}" for item in broken]
    shown = [*header[:-1], group.summary_name]
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


def _select(group: Group, domains: Sequence[str], seeds: Sequence[int]) -> Group:
    """The same group with these domains and seeds only."""
    runs = {
        row: {
            name: {seed: record for seed, record in cells[name].items() if seed in seeds}
            for name in domains
            if name in cells
        }
        for row, cells in group.runs.items()
    }
    for cells in runs.values():
        for name in domains:
            cells.setdefault(name, {})
    return replace(group, runs=runs)


def _reference(group: Group, name: str) -> Row:
    matches = [row for row in group.rows if name in (row.method, row.label)]
    if not matches:
        labels = ", ".join(row.label for row in group.rows)
        raise UserError(f"no row '{name}' to compare with in {group_title(group)}: the records hold {labels}")
    return matches[0]


def group_title(group: Group) -> str:
    """Data set, task and split."""
    facts = group.facts
    return f"{facts['dataset']}, task {facts['task'] or 'by hand'}, {facts['split']} images"


def header_lines(group: Group, rows: Sequence[Row], seeds: Sequence[int], base: Row | None = None) -> list[str]:
    """The lines that say what was measured."""
    facts = group.facts
    found = {row: [run for runs in group.runs.get(row, {}).values() for run in runs.values()] for row in rows}
    weights = f" (weights {facts['weights_hash'][:12]})" if facts["weights_hash"] else ""
    protocols = {
        protocol_of(run["source_domains"], run["target_domains"], run["task"], run.get("data_protocol", ""))
        for runs in found.values()
        for run in runs
    }
    trained = any(run["num_train"] for runs in found.values() for run in runs)
    shots = ("none" if not trained else "all") if facts["shots"] < 1 else f"{facts['shots']} a class"
    listed = ", ".join(map(str, seeds))
    protocol = f"protocol: {'; '.join(sorted(protocols))}"
    training = f"training images: {shots}"
    if facts["trained_on"]:
        targets = sorted({f"{run['dataset']}/{column_of(run)}" for runs in found.values() for run in runs})
        protocol = f"protocol: evaluation: trained on {facts['trained_on']}; tested on {', '.join(targets)}"
        training = "training images: none of this data set" if not _tests_own(found) else training
    lines = [
        protocol,
        f"{training}; classes: {facts['class_subset']}; backbone: {facts['backbone'] or '-'}{weights}",
        f"selection rule: {_by_row(found, 'selection_rule')}",
        f"prompt: {_by_row(found, 'prompt')}",
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
    transductive = [row.label for row, runs in found.items() if any(run["transductive"] for run in runs)]
    if transductive:
        lines.append(f"transductive (uses unlabelled test images): {', '.join(transductive)}")
    if facts["data"] == NOT_RECORDED:
        lines.append(f"{NOT_RECORDED}: these records do not say which images they are of")
    elif group.variants > 1:
        lines.append(f"images: {_images_of(found)}; runs on other images of {facts['dataset']} stand in another table")
    if base is not None:
        lines.append(f"gains: over {base.label}, same domain and seed")
    return lines


def _tests_own(found: Mapping[Row, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether evaluated runs were trained on the data set that they are tested on."""
    return any(run.get("trained", {}).get("dataset") == run["dataset"] for runs in found.values() for run in runs)


def _images_of(found: Mapping[Row, Sequence[Mapping[str, Any]]]) -> str:
    """`line: 32 test images 1a2b3c4d` for each column."""
    runs = [run for own in found.values() for run in own]
    told = {column_of(run): described(run.get("data") or {}) for run in runs}
    return ", ".join(f"{column}: {text}" for column, text in sorted(told.items()))


def _by_row(records: Mapping[Row, Sequence[Mapping[str, Any]]], key: str) -> str:
    """A fact once if all rows share it, otherwise with the rows that have it."""
    owners: dict[str, list[str]] = {}
    for row, runs in records.items():
        for value in sorted({run[key] for run in runs}):
            owners.setdefault(value or "none", []).append(row.label)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{value} [{', '.join(labels)}]" for value, labels in owners.items())


def _missing(group: Group, rows: Sequence[Row], domains: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """One line for each row with cells that no record fills."""
    lines = []
    for row in rows:
        gaps = {name: [seed for seed in seeds if seed not in group.runs.get(row, {}).get(name, {})] for name in domains}
        named = [f"{name} (seed {', '.join(map(str, absent))})" for name, absent in gaps.items() if absent]
        if named:
            lines.append(f"missing: {row.label}: {'; '.join(named)}")
    return lines


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
