"""Records sorted into groups that may share a table: rows (a method in a configuration), columns (domains) and seeds.

Records of different tasks, data sets, shots, class subsets, test parts, backbones, weights or images never share a
group.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from .errors import UserError, did_you_mean
from .protocols import TRANSFER_TASKS, part_name, trained_on
from .row_names import short_config, weights_file
from .run_data import NOT_RECORDED

Record = Mapping[str, Any]
MEAN = "mean"
LOWEST = "lowest/"  # as no folder of a domain can be called
SUMMARIES = {"b2n": "HM", "xd": "mean of targets", "dg": "mean of targets"}  # title of the last column by task


@dataclass(frozen=True)
class Row:
    """One method in one configuration; `config` "" stands for a run without a named configuration.

    `name` is what tables call it, where records or a user have given it one.
    """

    method: str
    config: str
    name: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """`Method (config)`, short: see `row_names`."""
        return self.name or self.with_weights("own weights")

    def with_weights(self, weights: str) -> str:
        """The label in which `weights` stands for a file of weights."""
        config = short_config(self.config, weights)
        return f"{self.method} ({config})" if config else self.method

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which a user may ask for the row; the last has every key that was changed."""
        whole = f"{self.method} ({self.config})" if self.config else self.method
        return self.method, self.label, whole


def refined_row(method: str, config: str, base_method: str, base_config: str) -> Row:
    """The row of a method that refined the runs of another: `Base + Method (config)`."""
    configs = base_config if config == base_config else " + ".join(filter(None, (base_config, config)))
    return Row(f"{base_method} + {method}", configs)


def named(row: Row, names: Mapping[Row, str]) -> Row:
    """A row under the name that it was given, or as it is."""
    return Row(names[row], "") if row in names else row


def row_of(record: Record) -> Row:
    """The row that a run stands in."""
    base, row = record.get("refines"), Row(record["method"], record["config"])
    if base:
        row = refined_row(record["method"], record["config"], base["method"], base["config"])
    return replace(row, name=row.with_weights(f"weights {record['backbone']['weights_hash'][:8]}"))


def column_of(record: Record) -> str:
    """The column of a run: its target domains, or its class subset where a data set has no domains.

    Of base to new it is the class subset, and of transfers to other data what is tested.
    """
    if record["task"] in ("xd", "dg"):
        return part_name(record["dataset"], record["target_domains"], record["class_subset"])
    if record["task"] == "b2n":
        return str(record["class_subset"])
    return "+".join(record["target_domains"]) or str(record["class_subset"])


@dataclass
class Group:
    """Runs that may stand in one table."""

    # What all of them share: task, dataset, shots, class_subset, test_part (of DomainBed's protocol), backbone,
    # weights_hash, split, trained_on (of evaluations), data (a name for the data set's domains and classes).
    facts: dict[str, Any]
    runs: dict[Row, dict[str, dict[int, Record]]] = field(default_factory=dict)  # row -> domain -> seed -> record
    remarks: list[str] = field(default_factory=list)  # what a reader of the table must know of its records
    variants: int = 1  # number of groups that would share a table if their images were the same

    def renamed(self, names: Mapping[Row, str]) -> Group:
        """The same runs with other names for some rows; rows of one name become one."""
        runs: dict[Row, dict[str, dict[int, Record]]] = {}
        for row, cells in self.runs.items():
            for column, by_seed in cells.items():
                runs.setdefault(named(row, names), {}).setdefault(column, {}).update(by_seed)
        return replace(self, runs=runs)

    def own(self, row: Row) -> Row:
        """A row under the name that it has here."""
        return next((own for own in self.runs if own == row), row)

    def selected(self, domains: Sequence[str], seeds: Sequence[int]) -> Group:
        """The same group with these domains and seeds only."""
        runs = {
            row: {
                name: {seed: record for seed, record in cells.get(name, {}).items() if seed in seeds}
                for name in sorted(domains, key=lambda name: name not in cells)
            }
            for row, cells in self.runs.items()
        }
        return replace(self, runs=runs)

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

    def records(self, row: Row | None = None) -> list[Record]:
        """The records of one row, or of all."""
        rows = self.runs.values() if row is None else [self.runs.get(row, {})]
        return [record for cells in rows for runs in cells.values() for record in runs.values()]

    @property
    def averaged(self) -> list[str]:
        """The columns that a mean is over: all, but the source data set's where others are tested."""
        if self.is_harmonic:
            return ["base", "new"]
        transfers = self.facts["task"] in TRANSFER_TASKS
        return [name for name in self.domains if not (transfers and name == self.facts["dataset"])]

    @property
    def is_harmonic(self) -> bool:
        """Whether the mean of accuracies is the harmonic one, of base and new classes."""
        return bool(self.facts["task"] == "b2n")

    def accuracies(self, row: Row, domain: str, key: str = "accuracy") -> dict[int, float]:
        """Seed -> accuracy in percent, or what else `key` names in the metrics, of one cell; absent ones are left out.

        Of the column `MEAN`, and of `LOWEST`, for the lowest of the averaged columns: the seeds that have all of these.
        """
        split = self.facts["split"]
        if domain not in (MEAN, LOWEST):
            found = {seed: record["metrics"][split] for seed, record in self.runs[row].get(domain, {}).items()}
            return {seed: metrics[key] for seed, metrics in found.items() if key in metrics}
        harmonic = self.is_harmonic and key.endswith("accuracy")  # errors are averaged as they are
        mean: Callable[[list[float]], float] = statistics.harmonic_mean if harmonic else statistics.fmean
        summary = min if domain == LOWEST else mean
        columns = [self.accuracies(row, name, key) for name in self.averaged]
        seeds = set.intersection(*map(set, columns)) if columns else set()
        return {seed: summary([column[seed] for column in columns]) for seed in sorted(seeds)}

    @property
    def summary_name(self) -> str:
        """Title of the last column."""
        return SUMMARIES.get(self.facts["task"], MEAN)


def check_rows(flag: str, asked: Iterable[str], groups: Sequence[Group]) -> None:
    """Refuse names of rows that no group has.

    Raises:
        UserError: which one, and what there is.
    """
    rows = [row for group in groups for row in group.rows]
    known = sorted({name for row in rows for name in row.names[:2]})
    for name in asked:
        if not any(name in row.names for row in rows):
            raise UserError(
                f"{flag}: no row '{name}'.{did_you_mean(name, known)} The records hold: {', '.join(known)}."
            )


def check_labels(words: Sequence[str]) -> None:
    """Refuse words of `--label` that are no `PATTERN=NAME`."""
    for word in words:
        pattern, _, name = word.rpartition("=")
        if not pattern or not name.strip():
            raise UserError(f"--label {word}: expected PATTERN=NAME, such as 'METHOD (*)=mine'")


def relabelled(groups: Sequence[Group], words: Sequence[str], all_fit: bool = True) -> list[Group]:
    """The groups with other names for some rows, or for the weights in their names.

    Args:
        groups: as of `group_records`.
        words: `PATTERN=NAME` each. A pattern (as of a shell) of a row's name renames the row; one of the file or the
            hash of its weights renames these. The last word that fits a row counts.
        all_fit: every pattern has to fit something, which rows that are not there yet cannot.

    Raises:
        UserError: a word is no such pair, its pattern fits nothing, or two rows of a table would have one name.
    """
    check_labels(words)
    pairs = [word.rpartition("=") for word in words]
    fitting: set[str] = set()

    def own(group: Group, row: Row) -> Row:
        backbone, file = group.facts["weights_hash"], weights_file(next(iter(group.records(row)), {}))
        for pattern, _, name in pairs:
            if any(fnmatchcase(known, pattern) for known in row.names):
                row = replace(row, name=name)
            elif any(known and fnmatchcase(known, pattern) for known in (file, backbone, backbone[:8])):
                row = replace(row, name=row.with_weights(name))
            else:
                continue
            fitting.add(pattern)
        return row

    made = [replace(group, runs={own(group, row): cells for row, cells in group.runs.items()}) for group in groups]
    for pattern, _, _ in pairs:
        if all_fit and pattern not in fitting:
            rows = sorted({row.label for group in groups for row in group.runs})
            raise UserError(f"--label: no row and no weights are called '{pattern}'. The rows are: {', '.join(rows)}.")
    for group, before in zip(made, groups):
        names: dict[str, str] = {}
        for row, old in zip(group.runs, before.runs):
            if row.label in names:
                raise UserError(f"--label: {names[row.label]} and {old.label} would both be called '{row.label}'")
            names[row.label] = old.label
    return made


def group_records(records: Iterable[Record], split: str = "test") -> list[Group]:
    """Sort records into groups that may share a table.

    Runs of different data sets, tasks, shots, class subsets or weights never do; nor do evaluations of a checkpoint
    with runs that were trained, or runs whose images differ: in each column of a group all runs had the same images to
    choose from and tested the same ones. Of two records of one cell and seed the one finished later counts, and the
    group says so.

    Args:
        records: complete records; `folder`, if it is there, names the record in remarks.
        split: the split whose metrics are wanted; records without it are left out.
    """
    groups: dict[tuple[Any, ...], list[Group]] = {}
    for record in sorted(records, key=lambda record: record["finished_at"]):
        if split not in record["metrics"]:
            continue
        facts = _shared_facts(record, split)
        row, column, seed = row_of(record), column_of(record), record["seed"]
        variants = groups.setdefault(tuple(facts.values()), [])
        group = next((group for group in reversed(variants) if _same_images(group, column, record)), None)
        if group is None:
            group = Group(facts)
            variants.append(group)
        cell = group.runs.setdefault(row, {}).setdefault(column, {})
        old = cell.get(seed)
        if old and {**old, "folder": ""} != {**record, "folder": ""}:  # a copy is none of two
            each = [
                f"{run['metrics'][split]['accuracy']:.1f} (finished {run['finished_at']}"
                + (f", {run['folder']})" if "folder" in run else ")")
                for run in (old, record)
            ]
            where = f"{row.label}, {column}, seed {seed}: {' and '.join(each)}"
            group.remarks.append(f"caution: two records of one cell differ: {where}; the latter is shown")
        cell[seed] = record
    for variants in groups.values():
        for group in variants:
            group.variants = len(variants)
    return [_told_apart(group) for key in sorted(groups, key=str) for group in groups[key]]


def _told_apart(group: Group) -> Group:
    """The group, in which rows of one short name have the first letters of a hash of their configuration in it."""
    labels = [row.label for row in group.runs]
    twice = {row for row in group.runs if labels.count(row.label) > 1}

    def own(row: Row) -> Row:
        digest = hashlib.sha256(row.config.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        return replace(row, name=f"{row.label} [{digest}]") if row in twice else row

    return replace(group, runs={own(row): cells for row, cells in group.runs.items()}) if twice else group


def _shared_facts(record: Record, split: str) -> dict[str, Any]:
    """The facts of a group that a record belongs to."""
    facts = {key: record[key] for key in ("task", "dataset", "shots", "class_subset")}
    data, across = record.get("data"), record["task"] in TRANSFER_TASKS
    if across:  # one table for the trained run and those that evaluate it
        facts["dataset"] = record.get("source_dataset", record["dataset"])
        facts["class_subset"] = "all" if record["class_subset"] == "all" else "base and new"
    facts["test_part"] = record.get("test_part", "")
    facts |= {"backbone": record["backbone"]["name"], "weights_hash": record["backbone"]["weights_hash"]}
    facts["split"] = split
    facts["trained_on"] = _trained_elsewhere(record, facts["dataset"])
    facts["data"] = NOT_RECORDED if data is None else "" if across else data.get("names", "")
    return facts


def _trained_elsewhere(record: Record, source: str) -> str:
    """What an evaluated checkpoint was trained on; "" for a trained run, and where the task itself says it."""
    if not record.get("evaluated_from"):
        return ""
    trained = record.get("trained", {})
    dataset, subset = str(trained.get("dataset")), str(trained.get("class_subset"))
    if record["task"] == "b2n" and (dataset, subset) == (source, "base"):
        return ""
    if record["task"] in ("xd", "dg") and part_name(dataset, trained.get("source_domains", ()), subset) == source:
        return ""
    return trained_on(trained)


def _same_images(group: Group, column: str, record: Record) -> bool:
    """Whether a record had the same images to choose from, and tested the same, as those of its column in a group."""
    data = record.get("data") or {}
    for cells in group.runs.values():
        for other in cells.get(column, {}).values():
            other_data = other.get("data") or {}
            if not data or not other_data:
                continue
            drawn = data.get("drawn_tests") and other["split_seed"] != record["split_seed"]
            if data["listing"] != other_data["listing"] or (data["test"] != other_data["test"] and not drawn):
                return False
    return True
