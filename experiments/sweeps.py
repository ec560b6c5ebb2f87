"""Sweep files: which runs make a table, from a name of `configs/sweeps` or a yaml file of the user's own.

Keys: `title`; `published` (name of a published table); `task` or `tasks`; `datasets`; `seeds`; `shots`; `readings`
(rows of the table beside, or in place of, the tested split); `rows`, each with `method` (`TRAINER[:CONFIG][+REFINER]`,
`{dataset}` is the data set's name) and, if wanted, `method_for` (a mapping of data sets to methods in its place),
`label` (the row's name in tables and `--rows`; beside published numbers the one printed there), `datasets`, `task(s)`,
`seeds`, `shots`, `set`, a mapping of config keys to values, and `grid`, one to values that are searched (`grid.py`), or
`search: domainbed` with `sets` and `rule` (`search.py`). Under DATASET.PROTOCOL domainbed seeds are trials.
A row with a single seed of its own is run once, whichever seeds are asked for.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dassl_clip import configs
from dassl_clip.engine import catalogue
from dassl_clip.engine.overrides import Pairs
from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.selection import TRAINING_DOMAIN

from . import grid, plan, search
from .entries import Entry
from .methods import method_of
from .tasks import TASKS

FOLDER = Path(configs.__file__).resolve().parent / "sweeps"
ROW_KEYS = ("method", "method_for", "label", "datasets", "task", "tasks", "seeds", "shots", "set", "grid",
            "search", "sets", "rule")  # fmt: skip
KEYS = ("title", "published", "readings", "rows", *ROW_KEYS[3:])
# What a value should be, and its type; of a list that of its items.
_KINDS: dict[str, tuple[str, type]] = dict.fromkeys(
    ("title", "published", "method", "label", "task", "search", "rule"), ("a text", str)
)
_KINDS |= dict.fromkeys(("readings", "datasets", "tasks"), ("a list of names", str))
_KINDS |= {"seeds": ("a list of whole numbers", int), "shots": ("a whole number", int), "rows": ("a list", list),
           "sets": ("a whole number", int),
           "set": ("a mapping of config keys to values", dict),
           "grid": ("a mapping of config keys to lists of values", dict),
           "method_for": ("a mapping of data sets to methods", dict)}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked; `rows` have the file's own values filled in."""

    name: str
    title: str
    published: str
    readings: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


def sweep_names() -> list[str]:
    """The sweeps that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_sweep(name: str) -> Sweep:
    """A sweep by name, or from a yaml file.

    Raises:
        UserError: there is none, or the file has keys or values that do not fit.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sweep_names()
        there = f"Known: {', '.join(known)}; or give a yaml file."
        raise UserError(f"there is no sweep '{name}'.{did_you_mean(name, known)} {there}")
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("rows"), list) or not tree["rows"]:
        raise UserError(f"{path} should be a mapping with a list `rows`; its keys may be {', '.join(KEYS)}")
    _check_keys(tree, KEYS, str(path))
    rows = []
    for number, row in enumerate(tree["rows"], 1):
        row = {"method": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get("method"), str):
            raise UserError(f"{path}: row {number} needs a `method`: TRAINER or TRAINER:CONFIG")
        _check_keys(row, ROW_KEYS, f"{path}, row {number}")
        given = {key: tree[key] for key in KEYS[4:] if key in tree} | row
        for dataset in row.get("method_for", {}):
            if dataset not in given.get("datasets", ()):
                there = ", ".join(given.get("datasets", ())[:8])
                raise UserError(f"{path}, row {number}: `method_for` names {dataset!r}, but its data sets are {there}")
        once = len(row.get("seeds", ())) == 1
        rows.append(given | {"label": row.get("label", row["method"]), "named": "label" in row, "once": once})
        if not rows[-1].get("datasets"):
            raise UserError(f"{path}: row {number} has no data set; give `datasets` a list of names")
        if (asked := given.get("search", search.DRAWS)) != search.DRAWS:
            raise UserError(f"{path}, row {number}: `search` should be {search.DRAWS}, not {asked!r}")
    labels = [row["label"] for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{path}: {labels.count(label)} rows are called '{label}'; give each a `label` of its own")
    return Sweep(
        name=path.stem,
        title=str(tree.get("title", path.stem)),
        published=str(tree.get("published", "")),
        readings=tuple(tree.get("readings", ())),
        rows=tuple(rows),
    )


def _check_keys(tree: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in tree:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(f"{place}: unknown key '{key}'.{hint} Known: {', '.join(known)}.")
        value, (what, kind) = tree[key], _KINDS[key]
        several = what.startswith("a list of")
        items = value if several and isinstance(value, list) else [] if several else [value]
        if not items or not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
            raise UserError(f"{place}: `{key}` should be {what}, not {value!r}")


def expand(
    sweep: Sweep,
    request: plan.Request,
    pairs: Pairs = (),
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    rule: str = "",
) -> list[Entry]:
    """Every run of a sweep, those that others need first.

    Args:
        sweep: the sweep.
        request: `out`, `data`, `imports`, `targets` (columns to keep), and (if not empty) `seeds` in place of the
            sweep's own.
        pairs: KEY VALUE pairs for all runs.
        only: labels of rows to keep; empty: all.
        datasets: names of data sets to keep; empty: all.
        rule: by which searches choose, in place of the sweep's own.

    Raises:
        UserError: a row, data set or target that the sweep does not have, or no run that has all of them.
    """
    entries: list[Entry] = []
    refined: list[plan.Run] = []
    check_known(sweep, "row", only, (row["label"] for row in sweep.rows))
    check_known(sweep, "data set", datasets, (name for row in sweep.rows for name in row["datasets"]))
    for row in sweep.rows:
        if only and row["label"] not in only:
            continue
        tasks = row.get("tasks") or ([row["task"]] if "task" in row else [])
        settings = row.get("set", {}).items()
        settings = tuple((key, value if isinstance(value, str) else repr(value)) for key, value in settings)
        for dataset in row["datasets"]:
            if datasets and dataset not in datasets:
                continue
            seeds = tuple(request.seeds)[: 1 if row["once"] else None] or tuple(row.get("seeds", (1,)))
            shots = row.get("shots") if request.shots is None else request.shots
            of_row = replace(request, dataset=dataset, seeds=seeds, tasks=tuple(tasks), shots=shots, targets=())
            word = row.get("method_for", {}).get(dataset, row["method"])
            word = word.replace("{dataset}", catalogue.dataset_file(dataset).stem)
            method = method_of(word, (*settings, *pairs), "", request.imports)
            if "search" in row:
                place, rules = f"{sweep.name}, row '{row['label']}'", (rule, row.get("rule"), TRAINING_DOMAIN)
                sets, own = row.get("sets", search.SETS), next(filter(None, rules))
                entries += search.Search(place, row["label"], word, (*settings, *pairs), of_row, sets, own).entries()
                continue
            if "grid" in row:
                entries += _searched(sweep, row, of_row, word, (*settings, *pairs))
                continue
            for run in plan.plan_runs(of_row, method):
                group = "" if TASKS[run.task].tested_on else run.config.DATASET.NAME
                entries.append(Entry(row["label"], run, group, run.target, row["named"]))
            refined += plan.plan_runs(of_row, method.base) if method.base else []
    folders = {entry.run.folder for entry in entries}
    bases = {run.folder: run for run in refined if run.folder not in folders}
    entries = [*(Entry("", run, run.config.DATASET.NAME, run.target) for run in bases.values()), *entries]
    entries = sorted(entries, key=lambda entry: entry.run.needs is not None)
    if request.targets:
        known = {name for entry in entries for name in entry.target_names}
        unknown = [name for name in request.targets if name not in known]
        check_known(sweep, "target", unknown, (entry.target_names[0] for entry in entries))
        entries = _of_targets(entries, set(request.targets))
    if not entries:
        raise UserError(f"{sweep.name} has no run of these rows, data sets and targets together; leave one of them out")
    return entries


def _searched(sweep: Sweep, row: dict[str, Any], request: plan.Request, word: str, pairs: Pairs) -> list[Entry]:
    """The runs of every point of a row's grid and, for each target whose points are finished, those of the best one."""
    place, label = f"{sweep.name}, row '{row['label']}'", row["label"]
    if sweep.published:
        raise UserError(f"{place}: a published table states its settings, so it has no `grid`")

    def runs_at(point: Pairs) -> list[plan.Run]:
        method = method_of(word, (*pairs, *point), "", request.imports)
        if method.base is not None:
            raise UserError(f"{place}: {word} refines other runs; give those a `grid` in a row of their own")
        return plan.plan_runs(request, method)

    entries, by_cell = [], dict[tuple[str, str], dict[Pairs, list[plan.Run]]]()
    for point in grid.points(row["grid"], place):
        for run in runs_at((*point, *grid.ON_VALIDATION)):
            if not TASKS[run.task].has_validation or run.config.DATASET.get("PROTOCOL") == "all-images":
                raise UserError(
                    f"{place}: `grid` is ranked on validation images of the source that are not tested, and the task "
                    f"{run.task} (DATASET.PROTOCOL {run.config.DATASET.get('PROTOCOL')}) has none; take fewshot or lodo"
                )
            named = f"{label}, {grid.name_of(point)}"
            entries.append(Entry(named, run, run.config.DATASET.NAME, run.target, True, point))
            by_cell.setdefault((run.task, run.target), {}).setdefault(point, []).append(run)
    for (task, target), cell in by_cell.items():
        found = [grid.validation_accuracies(runs) for runs in cell.values()]
        whole = [accuracies for accuracies in found if accuracies is not None]
        if len(whole) < len(found):
            continue
        number = grid.best(whole)
        point, validation = list(cell)[number], statistics.fmean(whole[number])
        for run in runs_at(point):
            if (run.task, run.target) == (task, target):
                entries.append(Entry(label, run, run.config.DATASET.NAME, target, True, point, validation))
    return entries


def check_known(sweep: Sweep, what: str, given: Sequence[str], known: Iterable[str]) -> None:
    """Refuse names of rows, data sets or targets that a sweep does not have."""
    there = list(dict.fromkeys(known))
    for name in given:
        if name not in there:
            several = f" Separate several {what}s by spaces." if "," in name else ""
            hint = did_you_mean(name, there)
            raise UserError(f"{sweep.name} has no {what} '{name}'.{hint} Its {what}s: {', '.join(there)}.{several}")


def _of_targets(entries: Sequence[Entry], targets: set[str]) -> list[Entry]:
    """The entries of some columns and, without label, the runs that these refine or evaluate."""
    kept = {entry.run.folder for entry in entries if entry.label and targets.intersection(entry.target_names)}
    needed = {entry.run.needs for entry in entries if entry.run.folder in kept} - kept
    return [
        entry if entry.run.folder in kept else replace(entry, label="")
        for entry in entries
        if entry.run.folder in kept or entry.run.folder in needed
    ]


def runs_of(entries: Iterable[Entry]) -> list[plan.Run]:
    """The runs of a sweep, each once."""
    return list({entry.run.folder: entry.run for entry in entries}.values())
