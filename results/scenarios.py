"""Tables of the tasks `batch`, `stream` and `online`: methods (rows) by cases (columns), mean over the target domains.

A cell is the mean over draws of a draw's accuracy, which is what papers print; `full` is the whole test set at once.
Gains, and the share of draws that are worse, are over the reference on the same draws: same domain, same seed, same
index lists.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .costs import cost_table, has_costs
from .extra_tables import extra_test_tables
from .groups import Group, Record, Row
from .protocols import SCENARIO_TASKS
from .rendering import Table, Value, over_seeds
from .tables import footnotes, group_facts, group_title, header_lines, metric_tables
from .trust import COST, DEFAULT_COLUMNS, LOSING, shows_accuracy

FULL, WORST = "full", "worst cell"
UNITS = {"batch": "batch", "stream": "block", "online": "image"}  # what `milliseconds` are of
T = TypeVar("T")
Figures = dict[tuple[str, int], float]  # domain, seed -> a number
Draws = dict[tuple[str, int], list[T]]  # domain, seed -> something of each draw


def has_scenarios(group: Group) -> bool:
    """Whether runs of a group were tested in batches, streams or orders."""
    return any(record.get("scenarios") for record in group.records())


def group_tables(
    group: Group,
    reference: str = "",
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    shown: Sequence[str] = DEFAULT_COLUMNS,
    per_domain: bool = False,
    further: bool = True,
) -> list[Table]:
    """The tables of a group: methods by domains, or by batches, streams or orders, then the extra tests and the cost.

    Args:
        group: runs that may share a table.
        reference: as of `tables.method_table`, like rows, columns and seeds.
        shown: what the tables show, of `trust.COLUMNS`; batches, streams, orders and extra tests stand by accuracies.
        per_domain: tables for each domain too.
        further: with the extra tests.
    """
    made = scenario_tables(group, reference, rows, columns, seeds, per_domain) if "accuracy" in shown else []
    made += extra_test_tables([group], rows, columns, seeds) if further and shows_accuracy(shown) else []
    if has_scenarios(group) and group.facts["task"] in SCENARIO_TASKS:
        shown = [name for name in shown if name != "accuracy"]
    if LOSING in shown:
        made.append(_tables(group, reference, rows, columns, seeds)[-1].losing())
    if COST in shown and has_costs(group.records()):
        made.append(cost_table(group, rows))
    return metric_tables(group, reference, rows, columns, seeds, [n for n in shown if n not in (COST, LOSING)]) + made


def scenario_tables(
    group: Group,
    reference: str = "",
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    per_domain: bool = False,
) -> list[Table]:
    """The accuracies of a group's runs, then what varies with the draws; arguments as of `group_tables`."""
    made = _tables(group, reference, rows, columns, seeds)
    return [table for own in (made if per_domain else made[-1:]) for table in own.tables()]


def _tables(
    group: Group,
    reference: str,
    rows: Sequence[Row] | None,
    columns: Sequence[str] | None,
    seeds: Sequence[int] | None,
) -> list[_Tables]:
    """The tables of each domain, where there are several, then those of all."""
    domains = list(columns) if columns is not None else group.domains
    seeds = list(seeds) if seeds is not None else group.seeds
    base = next((row for row in group.rows if reference in row.names), None)
    rows = list(rows) if rows is not None else sorted(group.rows, key=lambda row: row != base)
    sets = [[domain] for domain in domains] * (len(domains) > 1) + [domains]
    return [_Tables(group, base, rows, chosen, seeds) for chosen in sets]


class _Tables:
    """The tables of some domains of a group."""

    def __init__(
        self, group: Group, base: Row | None, rows: Sequence[Row], domains: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self.group, self.base, self.rows = group.selected(domains, seeds), base, rows
        self.domains, self.seeds = domains, seeds
        self.records = [record for record in self.group.records() if record.get("scenarios")]
        self.facts = self.records[0]["scenarios"] if self.records else {}
        self.cases = list(dict.fromkeys(name for record in self.records for name in record["scenarios"]["cases"]))

    def tables(self) -> Iterator[Table]:
        """Accuracies, then draws."""
        if not self.records:
            return
        where = ", ".join(self.domains) if len(self.domains) == 1 else f"mean of {len(self.domains)} domains"
        title = f"{group_title(self.group)}: {where}"
        above = [*header_lines(self.group, self.rows, self.seeds, self.base), *self.about()]
        names, several = [FULL, *self.cases], len(self.domains) > 1 and self.base is not None
        lines: list[list[str | Value]] = []
        gains: list[list[str | Value]] = []
        for row in self.rows:
            lines.append([row.label, *(self.cell(self.figures(row, name)) for name in names), *[Value("")] * several])
            if self.base is None or row == self.base:
                continue
            differences = {name: self.differences(row, name) for name in names}
            worst = [self.worst(differences)] if several else []
            cells = [self.cell(difference, signed=True) for difference in differences.values()]
            gains.append([f"gain of {row.label}", *cells, *worst])
        below = [*self.notes(), *self.not_applicable(), *footnotes(self.group, self.rows, self.domains, self.seeds)]
        facts, contests = group_facts(self.group), [(range(len(lines)), True)]
        yield Table(title, above, ["accuracy (%)", *names, *[WORST] * several], lines + gains, below, facts, contests)
        yield Table(f"{title}: draws", self.about_draws(), ["", *self.cases], list(self.draw_lines()), [], facts)

    def losing(self) -> Table:
        """The share of draws in which each row has fewer hits than the reference."""
        base = self.base.label if self.base is not None else "-"
        what = f"losing: percent of the draws in which a method has fewer hits than {base}"
        if self.base is None:
            what += "; name the row to compare with by --reference"
        if not self.records:
            what += "; these runs were not tested in batches, streams or orders"
        lines: list[list[str | Value]] = [
            [row.label, *(_share(self.worse(row, name)) for name in self.cases or [""])]
            for row in self.rows
            if row != self.base
        ]
        title = f"{group_title(self.group)}: losing draws"
        return Table(title, [what], ["losing (%)", *(self.cases or ["draws"])], lines, [], group_facts(self.group))

    def worse(self, row: Row, name: str) -> list[bool]:
        """Whether a row has fewer hits than the reference, for each draw that both had."""
        if self.base is None:
            return []
        return [own < other for run in self.pairs(row, name).values() for own, other in run]

    def runs(self, row: Row) -> Iterator[tuple[tuple[str, int], Record]]:
        """The runs of a row, by domain and seed."""
        for domain, runs in self.group.runs.get(row, {}).items():
            yield from (((domain, seed), run) for seed, run in runs.items())

    def figures(self, row: Row, name: str, key: str = "mean_of_draws") -> Figures:
        """A metric of the runs of a row."""
        split, key = (self.group.facts["split"], "accuracy") if name == FULL else (name, key)
        values = {place: run["metrics"].get(split, {}).get(key) for place, run in self.runs(row)}
        return {place: value for place, value in values.items() if value is not None}

    def differences(self, row: Row, name: str) -> Figures:
        """A row's accuracies minus those of the reference."""
        assert self.base is not None
        own, other = self.figures(row, name), self.figures(self.base, name)
        return {place: own[place] - other[place] for place in own if place in other}

    def cell(self, figures: Figures, signed: bool = False) -> Value:
        """A cell of the mean over the domains, of the seeds that have all of them."""
        complete = [seed for seed in self.seeds if all((domain, seed) in figures for domain in self.domains)]
        means = {seed: statistics.fmean(figures[domain, seed] for domain in self.domains) for seed in complete}
        return over_seeds(means, len(self.seeds), signed)

    def worst(self, differences: Mapping[str, Figures]) -> Value:
        """The least difference, mean over seeds, of a domain in a case: `-6.1 (flat, B64)`."""
        cells = []
        for name, figures in differences.items():
            for domain in self.domains:
                values = [value for (place, _), value in figures.items() if place == domain]
                cells += [(statistics.fmean(values), f"{domain}, {name}")] if values else []
        if not cells:
            return Value("-")
        least, where = min(cells)
        return Value(f"{least:+.1f} ({where})", (least,), more={"where": where})

    def about(self) -> list[str]:
        """The lines that say how the images of each column were drawn, and what the methods need."""
        task, draws = self.facts["task"], self.count("draws")
        same = f"the same for all methods (seed {_several(record['scenarios']['seed'] for record in self.records)})"
        full = f"{FULL}: all images of a target domain at once" if self.domains != ["all"] else f"{FULL}: all at once"
        lines = [full]
        if task == "batch":
            lines += [
                f"BN: {draws} random draws of N images each, {same}; KA-B: of A to B random classes, a number drawn "
                "too; a batch is smaller where its classes have fewer images",
                "cells of draws: accuracy over the images of a draw, mean over draws",
            ]
        elif task == "stream":
            blocks = _several(record["scenarios"]["block"] for record in self.records)
            lines += [
                f"stream G: {draws} orders of all images, {same}: the images of a class lie together, the more so the "
                "smaller G is, the parameter of a Dirichlet distribution; separate: one class after another; blocks of "
                f"{blocks} images are scored one after another, the last, shorter one too",
                "cells of streams: accuracy over all images, mean over orders",
            ]
        else:
            lines += [
                f"online: {draws} random orders of all images, {same}; each image is scored once, when it comes",
                "cells of orders: accuracy over all images, mean over orders",
            ]
        needs: dict[str, list[str]] = {}
        for row in self.rows:
            for text in dict.fromkeys(run["scenarios"]["needs"] for _, run in self.runs(row) if "scenarios" in run):
                needs.setdefault(text, []).append(row.label)
        return [*lines, *(f"needs {text}: {', '.join(labels)}" for text, labels in needs.items())]

    def count(self, key: str) -> str:
        """A number that the metrics of all cases hold."""
        return _several(
            record["metrics"][name][key] for record in self.records for name in self.cases if name in record["metrics"]
        )

    def notes(self) -> Iterator[str]:
        """What the draws of a case differ in from its name, a line for each."""
        where: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            for (domain, _), run in self.runs(row):
                for name, note in run.get("scenarios", {}).get("notes", {}).items():
                    if name in run["metrics"]:
                        where.setdefault((note, name), []).append(domain)
        for (note, name), domains in where.items():
            some = ", ".join(dict.fromkeys(domains)) if set(domains) != set(self.domains) else ""
            yield f"{name}{f' ({some})' if some else ''}: {note}"

    def not_applicable(self) -> Iterator[str]:
        """The cases of each row that do not apply, with the reason, a line for each."""
        for row in self.rows:
            where: dict[tuple[str, str], list[str]] = {}
            for (domain, _), run in self.runs(row):
                for name, reason in run.get("scenarios", {}).get("not_applicable", {}).items():
                    where.setdefault((reason, name), []).append(domain)
            cases: dict[tuple[str, str], list[str]] = {}
            for (reason, name), domains in where.items():
                some = ", ".join(dict.fromkeys(domains)) if set(domains) != set(self.domains) else ""
                cases.setdefault((reason, some), []).append(name)
            for (reason, some), names in cases.items():
                yield f"does not apply: {row.label}, {', '.join(names)}{f' ({some})' if some else ''}: {reason}"

    def about_draws(self) -> list[str]:
        """What the lines of the second table are."""
        unit = UNITS[self.facts["task"]]
        lines = [
            f"draws: {self.count('draws')} in each domain and seed",
            "standard error: over draws, of the mean (or, draw by draw, of the gain) in the table above; draws of one "
            "number are averaged over the domains first, whose draws are much alike; the images that are drawn from "
            "stay the same",
            f"ms: mean milliseconds per {unit}, without the encoding of images and texts; - where images are scored "
            "whatever comes with them",
        ]
        if self.base is not None:
            lines.insert(2, f"worse: percent of the draws in which a method has fewer hits than {self.base.label}")
        return lines

    def draw_lines(self) -> Iterator[list[str | Value]]:
        """Standard errors, shares of draws that are worse than the reference's, and milliseconds."""
        for row in self.rows:
            yield [f"standard error: {row.label}", *(self.standard_error(row, name) for name in self.cases)]
        others = [row for row in self.rows if self.base is not None and row != self.base]
        for row in others:
            pairs = [self.pairs(row, name) for name in self.cases]
            gains = [{place: [own - other for own, other in run] for place, run in runs.items()} for runs in pairs]
            yield [f"standard error of the gain: {row.label}", *map(_standard_error, gains)]
        for row in others:
            yield [f"worse: {row.label}", *(_share(self.worse(row, name)) for name in self.cases)]
        for row in self.rows:
            times = [list(self.figures(row, name, "milliseconds").values()) for name in self.cases]
            if any(times):
                yield [f"ms: {row.label}", *(_milliseconds(own) for own in times)]

    def standard_error(self, row: Row, name: str) -> Value:
        """Of the mean over domains and seeds."""
        runs = {place: run["metrics"][name] for place, run in self.runs(row) if name in run["metrics"]}
        return _standard_error({place: _accuracies(metrics) for place, metrics in runs.items()})

    def pairs(self, row: Row, name: str) -> Draws[tuple[float, float]]:
        """For each run of a row: its accuracy and the reference's in each draw, where both had the same draws."""
        assert self.base is not None
        others, found = dict(self.runs(self.base)), {}
        for place, run in self.runs(row):
            own, other = (record["metrics"].get(name, {}) for record in (run, others.get(place, {"metrics": {}})))
            if own and own.get("index_sha256") == other.get("index_sha256"):
                found[place] = list(zip(_accuracies(own), _accuracies(other)))
        return found


def _accuracies(metrics: Mapping[str, Any]) -> list[float]:
    """Of each draw, in percent."""
    return [100 * hits / images for hits, images in zip(metrics["correct_of_draws"], metrics["images_of_draws"])]


def _standard_error(draws: Draws[float]) -> Value:
    """The standard error of the mean over domains and seeds, as a cell.

    Draw `d` of a seed has the same generator in every domain, and so mostly the same classes: its values are averaged
    over the domains, and the means taken for independent. So are seeds.
    """
    errors = []
    for seed in dict.fromkeys(seed for _, seed in draws):
        values = [own for (_, other), own in draws.items() if other == seed]
        if len(set(map(len, values))) > 1:  # of other settings, so there is no draw d of all
            return Value("-")
        means = [statistics.fmean(each) for each in zip(*values)]
        errors += [statistics.stdev(means) / math.sqrt(len(means))] if len(means) > 1 else []
    if not errors:
        return Value("-")
    error = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return Value(f"{error:.1f}", (error,))


def _share(worse: Sequence[bool]) -> Value:
    """How many are worse, in percent."""
    if not worse:
        return Value("-")
    share = 100 * statistics.fmean(worse)
    return Value(f"{share:.0f}", (share,))


def _milliseconds(times: Sequence[float]) -> Value:
    """Their mean, with two digits at least: 0.034, 2.5, 25, 250."""
    if not times:
        return Value("-")
    mean = statistics.fmean(times)
    return Value(f"{mean:.2g}" if mean < 10 else f"{mean:.0f}", (mean,))


def _several(values: Iterable[Any]) -> str:
    """The different values in their order, as one text."""
    return " or ".join(dict.fromkeys(map(str, values)))
