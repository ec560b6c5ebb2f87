"""The tables of planned runs, from their records: of a task, and of a sweep beside what was published."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dassl_clip.results import bands, budgets, records
from dassl_clip.results import published as sheets
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import MEAN, SUMMARIES, Row, group_records, named, relabelled
from dassl_clip.results.protocols import DOMAINBED, protocol_of
from dassl_clip.results.rendering import DEVIATION, ERROR, Spread, Table
from dassl_clip.results.scenarios import group_tables
from dassl_clip.results.selection import RULE_TEXTS
from dassl_clip.results.trust import DEFAULT_COLUMNS

from . import grid, search, state
from .entries import Entry
from .plan import Run
from .search import target_accuracy
from .sweeps import Sweep
from .tasks import TASKS, trains_on_labels

PARTS = {"in": "in (80 %)", "out": "out (20 %)", "all": "all"}  # of a target, by DATASET.TEST_PART


def task_tables(
    runs: Sequence[Run],
    further: bool = True,
    names: Mapping[Row, str] = MappingProxyType({}),
    shown: Sequence[str] = DEFAULT_COLUMNS,
    labels: Sequence[str] = (),
) -> list[Table]:
    """The tables of the runs of one task; the first run's row is the reference.

    Args:
        runs: of one task.
        further: with a table of the further tests too.
        names: names of rows that were given one.
        shown: what the tables show, of `trust.COLUMNS`; the further tests stand beside accuracies.
        labels: `PATTERN=NAME`, see `relabelled`.
    """
    columns = list(dict.fromkeys(run.target for run in runs))
    seeds = sorted({run.seed for run in runs})
    rows = list(dict.fromkeys(named(run.row, names) for run in runs))
    split = "val" if runs[0].config.TEST.SPLIT == "val" else "test"
    finished = ((run.folder, records.read_record(run.folder)) for run in runs if state.is_complete(run))
    named_records = (record | {"folder": str(folder)} for folder, record in finished if record is not None)
    groups = group_records(named_records, split)
    groups = relabelled([group.renamed(names) for group in groups], labels, all_fit=False)
    made = []
    for group in groups:
        present = [group.own(row) for row in rows if len(groups) == 1 or row in group.runs]
        reference = group.own(rows[0]).label if len(rows) > 1 and rows[0] in group.runs else ""
        made += group_tables(group, reference, present, columns, seeds, shown, further=further)
    return made


@dataclass(frozen=True)
class Choice:
    """What of a sweep was asked for by name; means over more than that are not shown."""

    rows: bool = False
    datasets: bool = False
    targets: bool = False


def make_sheet(
    sweep: Sweep, entries: Sequence[Entry], chosen: Choice = Choice(), spread: Spread | None = None
) -> sheets.Sheet:
    """The sheet of a sweep with a published table, from the records that are there.

    Args:
        sweep: the sweep.
        entries: its runs.
        chosen: what was asked for by name.
        spread: what follows `+/-`; None: DomainBed's error where the seeds are trials, else the deviation.
    """
    published = sheets.read_published(sweep.published) if sweep.published else {}
    accuracies: dict[sheets.Key, dict[sheets.Place, dict[int, float]]] = {}
    finished = []
    readings = sweep.readings or ("test",)
    asked = [entry for entry in entries if entry.label]
    shown = [entry for entry in asked if not entry.searches]
    if len({entry.run.task for entry in asked}) > 1:
        raise UserError(f"{sweep.name}: a table beside published numbers is of one task, but its rows have several")
    for entry in shown:
        record = records.read_record(entry.run.folder) if state.is_complete(entry.run) else None
        if record is None:
            continue
        rule = {"selection_rule": RULE_TEXTS[entry.choice.rule]} if entry.choice else {}
        finished.append(record | rule)
        for name in readings:
            if (accuracy := target_accuracy(entry, record, name)) is not None:
                cell = accuracies.setdefault((entry.label, name), {}).setdefault((entry.group, entry.column), {})
                cell[entry.repetition] = accuracy
    places: dict[str, dict[str, None]] = {}
    for entry in asked:
        columns = places.setdefault(entry.group, {})
        columns |= dict.fromkeys(entry.run.config.DATASET.TARGET_DOMAINS if entry.searches else [entry.column])
    first = asked[0].run
    summary = "" if chosen.targets else SUMMARIES.get(first.task, MEAN)
    left_out = (first.config.RUN.SOURCE,) if TASKS[first.task].tested_on else ()
    labels = {entry.row_label for entry in asked}
    printed = {
        label: tests for label, tests in published.get("cells", {}).items() if label in labels or not chosen.rows
    }
    overall, misprints = not chosen.datasets and not chosen.targets, published.get("misprints", {})
    names = {group: list(columns) for group, columns in places.items()}
    cells, shown_columns = sheets.build_cells(accuracies, names, printed, summary, left_out, misprints, overall)
    wanted = {(group, column) for group, columns in shown_columns.items() for column in columns}
    cells = {key: {place: cell for place, cell in row.items() if place in wanted} for key, row in cells.items()}
    spread = spread or (ERROR if any(entry.is_trial for entry in asked) else DEVIATION)
    repetitions = {entry.repetition for entry in asked}
    several = [f"ours: cells: {spread.text}"] if spread is not DEVIATION and len(repetitions) > 1 else []
    sources = [source for source in published.get("sources", ()) if source.method in printed]
    order = {label: number for number, label in enumerate(dict.fromkeys([*printed, *(e.row_label for e in asked)]))}
    return sheets.Sheet(
        title=f"{published['title']}: ours and published" if published else sweep.title,
        above=_about(asked, finished, published) + several,
        cells=cells,
        places=shown_columns,
        seeds=len(repetitions),
        tolerance=float(published["tolerance"]) if published else None,
        below=[
            *(f"note: {note}" for note in published.get("footnotes", ())),
            *(f"note: {source.label}: {source.doubt}" for source in sources if source.doubt),
            *search.chosen_lines(shown),
            *unfinished(entries),
        ],
        sources=sorted([*sources, *_explained(asked)], key=lambda source: order[source.method]) if sources else [],
        spread=spread,
    )


def _explained(asked: Sequence[Entry]) -> list[bands.Source]:
    """What explains our own numbers, of each row, from the configurations of its runs."""
    by_row: dict[str, list[Any]] = {}
    for entry in asked:
        by_row.setdefault(entry.row_label, []).append(entry.run.config)
    searched, found = {entry.row_label for entry in asked if entry.searches}, []
    for label, configs in by_row.items():
        each = [_facts_of(config) for config in configs]
        facts = {name: _several(own[name] for own in each) for name in bands.FACTS}
        facts["steps"] += ", searched" if label in searched else ""
        found.append(bands.Source(label, bands.OURS, facts))
    return found


def _facts_of(config: Any) -> dict[str, str]:
    """The `bands.FACTS` of a run of ours."""
    node, trains = config.TRAINER[config.TRAINER.NAME.upper()], trains_on_labels(config.TRAINER.NAME)
    steps = f"{node.STEPS:,}" if node.get("STEPS") else f"{config.OPTIM.MAX_EPOCH} passes"
    head = "fresh" if node.get("HEAD") == "fresh" else "texts"
    head += {True: ", learned", False: ", fixed", None: ""}[node.get("HEAD_LEARNED")]
    of_trial = config.DATASET.get("PROTOCOL") == DOMAINBED
    return {
        "test part": PARTS[config.DATASET.TEST_PART] if of_trial else "all",
        "input statistics": {"clip": "CLIP's", "imagenet": "ImageNet's"}[node.get("INPUT_STATISTICS", "clip")],
        "head": head if node.get("NORMALIZE", True) else f"{head}, unnormalised",
        "steps": steps if trains else "none",
        "weights": " ".join(filter(None, (config.MODEL.BACKBONE.NAME, config.MODEL.BACKBONE.WEIGHTS))),
        "run by": "here",
        "read in": "-",
    }


def progress(entries: Sequence[Entry], command: str) -> str:
    """How many cells of a sweep are run, and the command that runs the others; "" where all are."""
    cells = {entry.run.folder: entry.run for entry in entries if entry.label}
    done = sum(state.is_complete(run) for run in cells.values())
    return f"{done} of {len(cells)} cells run; `{command}` runs the others" if done < len(cells) else ""


def unfinished(entries: Sequence[Entry]) -> list[str]:
    """One line for the missing runs of each row and data set, unless all are, and for each folder that cannot be used.

    `progress` says it where all are missing.
    """
    lines, missing, complete = [], dict[str, dict[str, list[int]]](), False
    unit = "trial" if any(entry.is_trial for entry in entries) else "seed"
    for entry in entries:
        now = state.state_of(entry.run)
        row = entry.label or f"{entry.run.row.label}, which another row needs"
        if entry.searches and entry.is_trial:
            row = f"{entry.row_label}, runs of its search"
        what = f"{row}, {entry.run.task}, {entry.group or entry.run.config.RUN.SOURCE}"
        if now.name == state.REFUSED:
            lines.append(f"refused: {what}/{entry.column}, {unit} {entry.repetition}: {now.reason}")
        elif now.name != state.COMPLETE:
            absent = missing.setdefault(what, {}).setdefault(entry.column, [])
            absent += [entry.repetition] if entry.repetition not in absent else []
        else:
            complete = True
    for what, columns in missing.items() if complete else ():
        of_seeds: dict[str, list[str]] = {}
        for column, seeds in columns.items():
            of_seeds.setdefault(f"{unit}{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}", []).append(column)
        cells = (f"{', '.join(names)} ({seeds})" for seeds, names in of_seeds.items())
        lines.append(f"missing: {what}: {'; '.join(cells)}")
    return lines


def _about(entries: Sequence[Entry], finished: Sequence[dict[str, Any]], published: dict[str, Any]) -> list[str]:
    """Protocol, selection rule, shots, backbone and templates of ours, and the paper's source."""
    runs = [entry.run for entry in entries]
    configs = [run.config for run in runs]
    nodes = [config.TRAINER[config.TRAINER.NAME.upper()] for config in configs]
    shots = _several(map(_training_images, configs))
    rules = _several(record["selection_rule"] for record in finished)
    rules = rules or _several(config.TEST.FINAL_MODEL for config in configs)
    prompts = _several(record["prompt"] for record in finished)
    prompts = prompts or _several(node.get("TEMPLATES") or node.get("CTX_INIT", "") for node in nodes)
    repetitions, unit = {entry.repetition for entry in entries}, "trial" if entries[0].is_trial else "seed"
    seeds = _several(sorted(repetitions))
    by_row: dict[str, set[int]] = {}
    for entry in entries:
        by_row.setdefault(entry.label, set()).add(entry.repetition)
    fewer = [
        f"{label}: {f'one {unit}' if len(seeds_of_row) == 1 else ', '.join(map(str, sorted(seeds_of_row)))}"
        for label, seeds_of_row in by_row.items()
        if len(seeds_of_row) < len(repetitions)
    ]
    seeds += f" ({'; '.join(fewer)})" if fewer else ""
    tested = [entry.run for entry in entries if not entry.searches] or runs
    sets = [run.config.DATASET for run in tested]
    domains = ((own.SOURCE_DOMAINS, own.TARGET_DOMAINS) for own in sets)
    kinds = ((own.get("PROTOCOL", ""), own.get("TEST_PART", "")) for own in sets)
    protocols = _several(protocol_of(*own, run.task, *kind) for own, run, kind in zip(domains, tested, kinds))
    printed, tolerance = [], ""
    if published:
        printed = [f"published: {published['paper']}; {published['source']}; backbone {published['backbone']}"]
        tolerance = f"; tolerance of a check: {published['tolerance']:g} points"
    lines = [
        *printed,
        f"ours: protocol: {protocols}",
        f"ours: backbone: {_several(config.MODEL.BACKBONE.NAME for config in configs)}; "
        f"training images per class: {shots}",
        f"ours: selection rule: {rules}; templates: {prompts}",
        f"ours: {unit}s: {seeds}{tolerance}",
    ]
    by_method: dict[str, list[Any]] = {}
    for record in finished:
        by_method.setdefault(str(record["method"]), []).append(record)
    transductive = _several(record["method"] for record in finished if budgets.is_transductive(record))
    lines += [f"transductive (uses unlabelled test images): {transductive}"] if transductive else []
    return lines + budgets.lines_of(by_method)


def _training_images(config: Any) -> str:
    """Images per class that a run is trained on, in words."""
    if config.DATASET.NUM_SHOTS > 0:
        return str(config.DATASET.NUM_SHOTS)
    return "all" if trains_on_labels(config.TRAINER.NAME) else "none"


def _several(values: Iterable[Any]) -> str:
    """The different values in their order, as one text."""
    return "; ".join(dict.fromkeys(map(str, values)))


def method_tables(
    sweep: Sweep, entries: Sequence[Entry], shown: Sequence[str] = DEFAULT_COLUMNS, labels: Sequence[str] = ()
) -> list[Table]:
    """Tables of a sweep without a published one, for each task, data set and number of shots: methods by columns.

    Gains are over the first row. Runs that no row asks for stand in none; below the last table stand the runs that are
    missing.
    """
    groups: dict[tuple[str, str, int, bool], list[Entry]] = {}
    for entry in entries:
        if entry.label:
            config = entry.run.config
            key = entry.run.task, config.RUN.SOURCE or config.DATASET.NAME, config.DATASET.NUM_SHOTS, entry.searches
            groups.setdefault(key, []).append(entry)
    made = []
    for (task, source, number, searches), own in groups.items():
        names = {entry.run.row: entry.label for entry in own if entry.named}
        tables_of_cell = task_tables([entry.run for entry in own], bool(sweep.readings), names, shown, labels)
        others = groups.get((task, source, number, False), [])
        _mark_chosen(tables_of_cell, own if not searches else others, searches)
        made += tables_of_cell
    for table in made:
        table.below = [line for line in table.below if not line.startswith("missing: ")]
    if made:
        made[-1].below += unfinished(entries)
    return made


def _mark_chosen(made: Sequence[Table], chosen: Sequence[Entry], searches: bool) -> None:
    """Mark the rows of a search that were chosen, and say below each table which, by what number, for which target."""
    lines, targets = dict[str, None](), dict[str, dict[str, None]]()
    for entry in chosen:
        if entry.validation is not None:
            row = f"{entry.label}, {grid.name_of(entry.point)}"
            lines[f"chosen for {entry.column}: {row}: {entry.validation:.1f} % on source validation images"] = None
            targets.setdefault(row, {})[entry.column] = None
    for table in made:
        marks = {row: f"{row} (chosen for {', '.join(names)})" for row, names in targets.items() if searches}
        table.cells = [[marks.get(str(first), first), *rest] for first, *rest in table.cells]
        table.below += lines
