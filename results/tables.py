"""Tables from run records alone: methods by target domains, mean and spread over seeds, gains over a reference.

The spread is the sample standard deviation over seeds (divisor n - 1); the figure in the mean column is, for each seed,
the mean over the domains, then mean and spread of those figures over seeds. Gains are differences of runs of the same
domain and seed.

The further tests that a record may hold have tables of their own (`extra_tables.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .budgets import is_transductive, text_of
from .budgets import lines_of as budget_lines
from .groups import LOWEST, MEAN, Group, Record, Row, column_of, row_of
from .intervals import INTERVAL_NOTE, gain_intervals
from .protocols import SCENARIO_TASKS, protocols
from .rendering import DEVIATION, Table, Value, over_seeds
from .row_names import changed_keys
from .run_data import NOT_RECORDED, described
from .trust import BUDGET, DEFAULT_COLUMNS, INTERVAL, METRICS, WORST, WORST_NOTE

FULL_NOTE = "cells: all images of a target domain at once"


def metric_tables(
    group: Group,
    reference: str = "",
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    shown: Sequence[str] = DEFAULT_COLUMNS,
) -> list[Table]:
    """A table for each of the `trust.COLUMNS` in `shown`; `worst`, `interval` and `budget` stand in that of accuracies.

    The other arguments are those of `method_table`.
    """
    summaries = [name for name in shown if name not in METRICS]
    metrics = dict.fromkeys(name if name in METRICS else "accuracy" for name in shown)
    return [
        method_table(group, reference, rows, columns, seeds, name, summaries if name == "accuracy" else ())
        for name in metrics
    ]


def method_table(
    group: Group,
    reference: str = "",
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    metric: str = "accuracy",
    summaries: Sequence[str] = (),
) -> Table:
    """Methods (rows) by target domains and their mean (columns), with the gain of each row over a reference.

    Args:
        group: runs that may share a table.
        reference: method of the reference row, or its whole label `Method (config)`; no gains where no row is it.
        rows: the rows wanted, in this order; default: all, the reference first.
        columns: the domains wanted, in this order; default: all by name.
        seeds: the seeds wanted; default: all that occur.
        metric: what the cells show, of `trust.METRICS`.
        summaries: further columns, of `worst`, `interval` and `budget`.
    """
    seeds = list(seeds) if seeds is not None else group.seeds
    domains = list(columns) if columns is not None else group.domains
    base = next((row for row in group.rows if reference in row.names), None)
    rows = list(rows) if rows is not None else sorted(group.rows, key=lambda row: row != base)
    wanted, what = group.selected(domains, seeds), METRICS[metric]
    names = [*domains, MEAN, *([LOWEST] if WORST in summaries else [])]

    def cells(row: Row) -> list[Mapping[int, float]]:
        return [wanted.accuracies(row, name, what.key) if row in wanted.runs else {} for name in names]

    def values(each: Sequence[Mapping[int, float]], signed: bool = False) -> list[Value]:
        return [over_seeds(cell, len(seeds), signed, what.digits) for cell in each]

    lines: list[list[str | Value]] = [[row.label, *values(cells(row))] for row in rows]
    compared = [row for row in rows if row != base] if base is not None and what.gains else []
    against = cells(base) if base is not None else []
    for row in compared:
        pairs = zip(cells(row), against)
        gains = [{seed: cell[seed] - ref[seed] for seed in cell if seed in ref} for cell, ref in pairs]
        lines.append([f"gain of {row.label}", *values(gains, signed=True)])
    mean = MEAN if group.is_harmonic and not what.gains else group.summary_name
    header = [what.title, *domains, mean]
    above = header_lines(wanted, rows, seeds, base if what.gains else None) + ([what.note] if what.note else [])
    above += [FULL_NOTE] if group.facts["task"] in SCENARIO_TASKS else []
    below = _not_recorded(wanted, rows, metric)
    if WORST in summaries:
        header, above = [*header, WORST], [*above, WORST_NOTE]
    if INTERVAL in summaries:
        intervals, reasons = gain_intervals(wanted, compared, base)
        header, above, below = [*header, INTERVAL], [*above, INTERVAL_NOTE], below + reasons
        none = Value("-" if base is None else "")
        ends = [none] * len(rows) + [intervals.get(row, Value("-")) for row in compared]
        lines = [[*line, end] for line, end in zip(lines, ends, strict=True)]
    if BUDGET in summaries:
        texts = [text_of(wanted.records(row)) for row in rows] + [""] * len(compared)
        reads = [Value(text, more={"text": text}) for text in texts]
        header, lines = [*header, "reads"], [[*line, each] for line, each in zip(lines, reads, strict=True)]
    below += footnotes(wanted, rows, domains, seeds)
    contests = [(range(len(rows)), what.gains)]
    return Table(group_title(group), above, header, lines, below, group_facts(group), contests)


def target_table(group: Group, row: Row, metric: str = "accuracy") -> Table:
    """One method's runs: a line a target domain with a metric for each seed, mean and spread, then their mean."""
    seeds, what = group.seeds, METRICS[metric]
    lines: list[list[str | Value]] = []
    for name in [*group.domains, MEAN]:
        cell = group.accuracies(row, name, what.key)
        each = [{seed: cell[seed]} if seed in cell else {} for seed in seeds]
        alone = [over_seeds(own, 1, digits=what.digits) for own in each]
        lines.append([name, *alone, over_seeds(cell, len(seeds), digits=what.digits)])
    header = ["target", *(f"seed {seed}" for seed in seeds), what.title]
    if len(seeds) == 1:
        header, lines = ["target", what.title], [[line[0], line[-1]] for line in lines]
    above = header_lines(group, [row], seeds) + ([what.note] if what.note else [])
    below = legend(group, [row]) + _missing(group, [row], group.domains, seeds)
    below += _not_recorded(group, [row], metric) + group.remarks
    return Table(f"{row.label}: {group_title(group)}", above, header, lines, below, group_facts(group))


def group_title(group: Group) -> str:
    """Data set, task and split, and of DomainBed's protocol the part that is tested."""
    facts = group.facts
    part = {"": "", "all": " (whole target)"}.get(facts["test_part"], f" ({facts['test_part']} part)")
    part = part if facts["split"] == "test" else ""
    return f"{facts['dataset']}, task {facts['task'] or 'by hand'}, {facts['split']} images{part}"


def group_facts(group: Group) -> dict[str, Any]:
    """What all cells of a group's tables share, for CSV and JSON."""
    keys = {"dataset": "dataset", "task": "task", "split": "split", "shots": "shots", "classes": "class_subset",
            "backbone": "backbone", "weights": "weights_hash"}  # fmt: skip
    keys |= {"test_part": "test_part"} if group.facts["test_part"] else {}
    return {name: group.facts[key] for name, key in keys.items()}


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
        f"seeds: {listed}" + (f"; cells: {DEVIATION.text}" if len(seeds) > 1 else ""),
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
    transductive = [row.label for row in rows if any(map(is_transductive, records[row]))]
    if transductive:
        lines.append(f"transductive (uses unlabelled test images): {', '.join(transductive)}")
    lines += budget_lines({row.label: runs for row, runs in records.items()})
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
    missing = legend(group, rows) + _missing(group, rows, domains, seeds)
    return missing + _unlike(group, rows) + _trained_on(group, rows) + group.remarks


def legend(group: Group, rows: Sequence[Row]) -> list[str]:
    """What the short names of the rows leave out: the keys that were changed, with paths; once what all rows share."""
    changed = {row: changed_keys(record) for row in rows for record in group.records(row)[:1]}
    each = [set(keys.items()) for keys in changed.values()]
    shared = set.intersection(*each) if len(each) > 1 else set()
    lines = [f"all rows: {_pairs(shared)}"] if shared else []
    for row, keys in changed.items():
        record = group.records(row)[0]
        known = row_of(record).label
        own = [] if row.label.startswith(known) else [known]
        own += [_pairs(keys.items() - shared)] if keys.items() - shared else []
        lines += [f"{row.label}: {', '.join(own)}"] if own else []
    return lines


def _pairs(keys: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(keys))


def _missing(group: Group, rows: Sequence[Row], domains: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """One line for each row with cells that no record fills."""
    lines = []
    for row in rows:
        cells = group.runs.get(row, {})
        gaps = {name: ", ".join(str(seed) for seed in seeds if seed not in cells.get(name, {})) for name in domains}
        named = [f"{name} (seed {absent})" for name, absent in gaps.items() if absent]
        lines += [f"missing: {row.label}: {'; '.join(named)}"] if named else []
    return lines


def _not_recorded(group: Group, rows: Sequence[Row], metric: str) -> list[str]:
    """A line that names the rows with runs whose records lack a metric."""
    key, split, since = METRICS[metric].key, group.facts["split"], METRICS[metric].since
    lacking = [row.label for row in rows if any(key not in run["metrics"][split] for run in group.records(row))]
    when = f"before version {since}, or " if since else ""
    return [f"{metric}: not recorded in runs {when}of other trainers: {', '.join(lacking)}"] if lacking else []


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
