"""Sweep files: which runs make a table, from a name of `configs/sweeps` or a yaml file of the user's own.

Keys: `title`; `published` (name of a published table); `task` or `tasks`; `datasets`; `seeds`; `shots`; `readings`
(rows of the table beside, or in place of, the tested split); `rows`, each with `method` (`TRAINER[:CONFIG][+InMaP]`,
`{dataset}` is the data set's name) and, if wanted, `method_for` (a mapping of data sets to methods in its place),
`label` (the row's name in tables and `--rows`; beside published numbers the one printed there), `datasets`, `task(s)`,
`seeds`, `shots` and `set`, a mapping of config keys to values.
A row with a single seed of its own is run once, whichever seeds are asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dassl_clip import configs
from dassl_clip.cli import task
from dassl_clip.engine import catalogue
from dassl_clip.results import published as sheets
from dassl_clip.results import records, tables
from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, did_you_mean

from . import plan

FOLDER = Path(configs.__file__).resolve().parent / "sweeps"
ROW_KEYS = ("method", "method_for", "label", "datasets", "task", "tasks", "seeds", "shots", "set")
KEYS = ("title", "published", "readings", "rows", *ROW_KEYS[3:])
_NAMES, _NUMBERS = "a list of names", "a list of whole numbers"
_KINDS = {"title": "a text", "published": "a text", "method": "a text", "label": "a text", "task": "a text",
          "readings": _NAMES, "datasets": _NAMES, "tasks": _NAMES, "seeds": _NUMBERS, "shots": "a whole number",
          "rows": "a list", "set": "a mapping of config keys to values",
          "method_for": "a mapping of data sets to methods"}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of a sweep and where it stands in the table: row label, group of columns, column.

    A run that no row asks for, but that one of them refines, has no label. `named`: the file gives the row a label.
    """

    label: str
    run: plan.Run
    group: str
    column: str
    named: bool = False


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
            raise UserError(f"{path}: row {number} needs a `method`, such as GOPro or CLAP:icons")
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


def _check_keys(tree: dict, known: Sequence[str], place: str) -> None:
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{place}: unknown key '{key}'.{hint} Known: {', '.join(known)}.")
        if not _fits(tree[key], _KINDS[key]):
            raise UserError(f"{place}: `{key}` should be {_KINDS[key]}, not {tree[key]!r}")


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of a sweep file is of a kind of `_KINDS`."""
    if kind in (_NAMES, _NUMBERS):
        each = str if kind == _NAMES else int
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(item, each) and not isinstance(item, bool) for item in value)
        )
    types = {"a text": str, "a whole number": int, "a list": list}
    return isinstance(value, types.get(kind, dict)) and not isinstance(value, bool)


def expand(sweep: Sweep, request: plan.Request, pairs: Sequence[str], only: Sequence[str] = ()) -> list[Entry]:
    """Every run of a sweep, those that others need first.

    Args:
        sweep: the sweep.
        request: `out`, `data`, `imports`, `targets`, and (if not empty) `seeds` in place of the sweep's own.
        pairs: KEY VALUE pairs for all runs, flat.
        only: labels of rows to keep; empty: all.
    """
    entries: list[Entry] = []
    refined: list[plan.Run] = []
    labels = [row["label"] for row in sweep.rows]
    for name in only:
        if name not in labels:
            rows = ", ".join(labels)
            raise UserError(f"{sweep.name} has no row '{name}'.{did_you_mean(name, labels)} Its rows: {rows}.")
    for label, row in zip(labels, sweep.rows):
        if only and label not in only:
            continue
        tasks = row.get("tasks") or ([row["task"]] if "task" in row else [])
        settings = {key: value if isinstance(value, str) else repr(value) for key, value in row.get("set", {}).items()}
        own = [word for pair in settings.items() for word in pair]
        for dataset in row["datasets"]:
            asked = replace(
                request,
                dataset=dataset,
                seeds=_seeds(row, request.seeds),
                tasks=tuple(tasks),
                shots=row.get("shots") if request.shots is None else request.shots,
            )
            word = (
                row.get("method_for", {})
                .get(dataset, row["method"])
                .replace("{dataset}", catalogue.dataset_file(dataset).stem)
            )
            method = task.method_of(word, asked, (*own, *pairs))
            for run in plan.plan_runs(asked, method):
                group = "" if plan.TASKS[run.task].tested_on else run.cfg.DATASET.NAME
                entries.append(Entry(label, run, group, run.target, row["named"]))
            refined += plan.plan_runs(asked, method.base) if method.base else []
    there = {entry.run.folder for entry in entries}
    bases = {run.folder: run for run in refined if run.folder not in there}
    entries = [*(Entry("", run, run.cfg.DATASET.NAME, run.target) for run in bases.values()), *entries]
    return sorted(entries, key=lambda entry: entry.run.needs is not None)


def _seeds(row: dict[str, Any], asked: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a row: those that were asked for, else its own; of a row with a single one, the first."""
    own = tuple(row.get("seeds", (1,)))
    return tuple(asked)[:1] if asked and row["once"] else tuple(asked) or own


def make_sheet(sweep: Sweep, entries: Sequence[Entry]) -> sheets.Sheet:
    """The sheet of a sweep with a published table, from the records that are there."""
    published = sheets.read_published(sweep.published)
    got: dict[sheets.Key, dict[sheets.Place, dict[int, float]]] = {}
    places: dict[str, list[str]] = {}
    found = []
    readings = sweep.readings or ("test",)
    shown = [entry for entry in entries if entry.label]
    if len({entry.run.task for entry in shown}) > 1:
        raise UserError(f"{sweep.name}: a table beside published numbers is of one task, but its rows have several")
    for entry in shown:
        columns = places.setdefault(entry.group, [])
        columns += [entry.column] if entry.column not in columns else []
        record = records.read_record(entry.run.folder) if task.run_state(entry.run)[0] == "complete" else None
        if record is None:
            continue
        found.append(record)
        for name in readings:
            if name in record["metrics"]:
                cell = got.setdefault((entry.label, name), {}).setdefault((entry.group, entry.column), {})
                cell[entry.run.seed] = record["metrics"][name]["accuracy"]
    first = shown[0].run
    summary = tables.SUMMARIES.get(first.task, sheets.MEAN)
    left_out = (first.cfg.RUN.SOURCE,) if plan.TASKS[first.task].tested_on else ()
    misprints = published.get("misprints", {})
    cells, columns = sheets.build_cells(got, places, published["cells"], summary, left_out, misprints)
    return sheets.Sheet(
        title=f"{published['title']}: ours and published",
        above=_about(shown, found, published),
        cells=cells,
        places=columns,
        seeds=len({entry.run.seed for entry in shown}),
        tolerance=float(published["tolerance"]),
        below=[*(f"note: {note}" for note in published["footnotes"]), *unfinished(entries)],
    )


def unfinished(entries: Sequence[Entry]) -> list[str]:
    """One line for each run that is not there: the command that makes it, or why its folder cannot be used."""
    lines = []
    for entry in entries:
        state, reason = task.run_state(entry.run)
        row = entry.label or f"{entry.run.row.label}, which another row refines"
        what = f"{row}, {entry.run.task}, {entry.group or 'all'}/{entry.column}, seed {entry.run.seed}"
        if state == "refused":
            lines.append(f"refused: {what}: {reason}")
        elif state != "complete":
            lines.append(f"missing: {what}: {entry.run.command}")
    return lines


def _about(entries: Sequence[Entry], found: Sequence[dict[str, Any]], published: dict[str, Any]) -> list[str]:
    """Protocol, selection rule, shots, backbone and templates of ours, and the paper's source."""
    runs = [entry.run for entry in entries]
    nodes = [run.cfg.TRAINER[run.cfg.TRAINER.NAME.upper()] for run in runs]
    shots = _several(run.cfg.DATASET.NUM_SHOTS if run.cfg.DATASET.NUM_SHOTS > 0 else "none" for run in runs)
    rules = _several(record["selection_rule"] for record in found) or _several(run.cfg.TEST.FINAL_MODEL for run in runs)
    prompts = _several(record["prompt"] for record in found)
    prompts = prompts or _several(node.get("TEMPLATES") or node.get("CTX_INIT", "") for node in nodes)
    seeds = _several(sorted({run.seed for run in runs}))
    by_row: dict[str, set[int]] = {}
    for entry in entries:
        by_row.setdefault(entry.label, set()).add(entry.run.seed)
    fewer = [(label, own) for label, own in by_row.items() if len(own) < len({run.seed for run in runs})]
    fewer_text = [
        f"{label}: {'one seed' if len(own) == 1 else ', '.join(map(str, sorted(own)))}" for label, own in fewer
    ]
    seeds += f" ({'; '.join(fewer_text)})" if fewer else ""
    lines = [
        f"published: {published['paper']}; {published['source']}; backbone {published['backbone']}",
        f"ours: protocol: {_several(_protocol(run) for run in runs)}",
        f"ours: backbone: {_several(run.cfg.MODEL.BACKBONE.NAME for run in runs)}; training images per class: {shots}",
        f"ours: selection rule: {rules}; templates: {prompts}",
        f"ours: seeds: {seeds}; tolerance of a check: {published['tolerance']:g} points",
    ]
    transductive = _several(record["method"] for record in found if record["transductive"])
    return lines + ([f"transductive (uses unlabelled test images): {transductive}"] if transductive else [])


def _protocol(run: plan.Run) -> str:
    options = run.cfg.DATASET
    return records.protocol_of(options.SOURCE_DOMAINS, options.TARGET_DOMAINS, run.task, options.get("PROTOCOL", ""))


def _several(values: Iterable[Any]) -> str:
    """The different values in their order, as one text."""
    return "; ".join(dict.fromkeys(map(str, values)))


def method_tables(sweep: Sweep, entries: Sequence[Entry]) -> list[tables.Table]:
    """Tables of a sweep without a published one, for each task, data set and number of shots: methods by columns.

    Gains are over the first row. Runs that no row asks for stand in none; below the last table stand the runs that are
    missing, each with its command.
    """
    groups: dict[tuple[str, str, int], list[Entry]] = {}
    for entry in entries:
        if entry.label:
            cfg = entry.run.cfg
            key = entry.run.task, cfg.RUN.SOURCE or cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS
            groups.setdefault(key, []).append(entry)
    made = []
    for own in groups.values():
        names = {entry.run.row: entry.label for entry in own if entry.named}
        made += task.tables_of([entry.run for entry in own], further=bool(sweep.readings), names=names)
    for table in made:
        table.below = [line for line in table.below if not line.startswith("missing: ")]
    if made:
        made[-1].below += unfinished(entries)
    return made
