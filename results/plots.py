"""Figures from run records alone: accuracy by domain and by shots, loss curves, accuracy by a setting.

Every line is a mean over seeds, every bar or band a sample standard deviation over seeds (divisor n - 1), and the
caption inside the figure says what was measured. A column `mean` is, for each seed, the mean over the domains; only
seeds that have every domain count there. Runs of different tasks, data sets, class subsets or weights never share a
panel.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import UserError
from .figures import (
    GREY,
    Plot,
    caption,
    check_lines,
    distinguishing_labels,
    finish,
    look,
    new_figure,
    shortened,
    styled,
)
from .groups import MEAN, Record, column_of, group_records, row_of
from .rendering import mean_and_spread

_LARGEST = 1e100  # beyond it there are no ticks
MOST_PANELS = 12
RATE = "lr"
COUNTERS = ("epoch", "step")
_PROBE = re.compile(r"(\d+)-shot")
Cells = dict[float, dict[int, float]]  # x -> seed -> y


def domains_plot(records: Iterable[Record], split: str = "test") -> Plot:
    """Accuracy of each method in each target domain and on average; one panel for each group that shares a table.

    Raises:
        UserError: no record has that split, or there are too many groups for one figure.
    """
    groups = group_records(records, split)
    if not groups:
        raise UserError(f"none of the runs has metrics of {split} images")
    if len(groups) > MOST_PANELS:
        raise UserError(
            f"the runs fall into {len(groups)} groups that may not share a panel (task, data set, shots, classes, "
            f"backbone); at most {MOST_PANELS} fit in a figure: give fewer run folders"
        )
    rows = list(dict.fromkeys(row for group in groups for row in group.rows))
    with styled():
        figure, axes = new_figure(len(groups), width=max(3.3, 0.55 * max(len(g.domains) for g in groups) + 1.4))
        handles: dict[str, Any] = {}
        facts = [dict(group.facts) for group in groups]
        for about in facts:
            about["shots"] = f"{about['shots']} shots" if about["shots"] > 0 else "all images"
        named = ["dataset", "task"]
        named += [key for key in ("shots", "class_subset", "backbone") if len({f[key] for f in facts}) > 1]
        for panel, group, about in zip(axes, groups, facts):
            columns = [*group.domains, MEAN] if len(group.domains) > 1 else group.domains
            for row in group.rows:
                shift = 0.7 * ((group.rows.index(row) + 0.5) / len(group.rows) - 0.5)
                cells = {column: list(group.accuracies(row, column).values()) for column in columns}
                positions = [index + shift for index, column in enumerate(columns) if cells[column]]
                numbers = [mean_and_spread(values) for values in cells.values() if values]
                style = look(rows.index(row)) | {"linestyle": "none"}
                bars = [spread or 0.0 for _, spread in numbers]
                handles[row.label] = panel.errorbar(positions, [mean for mean, _ in numbers], bars, **style)
            panel.set_xticks(range(len(columns)), [shortened(name, 18) for name in columns])
            panel.tick_params(axis="x", rotation=0 if len(columns) < 6 else 45)
            title = ", ".join(str(about[key]) for key in named if about[key])
            panel.set(ylabel="accuracy (%)", title=shortened(title, 46))
            panel.grid(axis="x", visible=False)
            if MEAN in columns:
                panel.axvline(len(columns) - 1.5, color=GREY, linewidth=0.8)
        shown = [record for group in groups for record in group.records()]
        return finish("domains", figure, handles, caption(shown, f"Accuracy by target domain on {split} images."))


def curves_plot(records: Iterable[Record]) -> Plot:
    """Loss terms and learning rate over training; one panel per term, one line per method and target.

    Raises:
        UserError: no record has a history, or there are too many lines.
    """
    every = list(records)
    records = [record for record in every if any(entry.keys() - set(COUNTERS) for entry in record.get("history", ()))]
    if not records:
        methods = ", ".join(sorted({record["method"] for record in every}))
        raise UserError(
            f"none of the {len(every)} runs ({methods}) has a history of its losses: the method trains nothing step by "
            "step, or the run was made before histories were kept; run it again to have one"
        )
    labels = distinguishing_labels(records)
    lines = list(dict.fromkeys(labels))
    cells: dict[tuple[str, str], dict[str, Cells]] = {}
    for record, label in zip(records, labels):
        for entry in record["history"]:
            counter = next((name for name in COUNTERS if name in entry), COUNTERS[0])
            for term in entry.keys() - set(COUNTERS):
                if abs(entry[term]) > _LARGEST:
                    raise UserError(f"{label}: {term} is {entry[term]:g}, which no axis can show")
                line = cells.setdefault((term, counter), {}).setdefault(label, {})
                line.setdefault(entry.get(counter, 0), {})[record["seed"]] = entry[term]
    panels = sorted(cells, key=lambda key: (key[0] == RATE, key[0] != "loss", key))
    with styled():
        figure, axes = new_figure(len(panels))
        handles: dict[str, Any] = {}
        for panel, (term, counter) in zip(axes, panels):
            for label, line in cells[term, counter].items():
                handles[label] = draw_line(panel, line, look(lines.index(label)), band=True)
            panel.set(xlabel=counter, title="learning rate" if term == RATE else shortened(term, 40))
            panel.locator_params(axis="x", integer=True)
            if term == RATE:
                panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        text = "The loss (a weighted sum) and its unweighted terms: means over an epoch, or since the last check, on "
        text += "training data."
        left_out = len(every) - len(records)
        text += f" {left_out} of {len(every)} runs have no history." if left_out else ""
        ordered = {label: handles[label] for label in lines if label in handles}
        return finish("curves", figure, ordered, caption(records, text, "bands"))


def shots_plot(records: Iterable[Record], split: str = "test") -> Plot:
    """Accuracy over the number of training images per class, of runs and of few-shot probes; dashed: no labels used.

    Raises:
        UserError: nothing was measured with two or more numbers of shots.
    """
    records = [record for record in records if split in record["metrics"]]
    # group -> domain -> line -> shots -> seed -> accuracy
    panels: dict[tuple[str, ...], dict[str, dict[str, Cells]]] = {}
    for record in sorted(records, key=lambda record: record["finished_at"]):
        measured = panels.setdefault(measured_in(record), {}).setdefault(column_of(record), {})
        for name, shots, accuracy in _by_shots(record, split):
            measured.setdefault(name, {}).setdefault(shots, {})[record["seed"]] = accuracy
    for domains in panels.values():
        if len(domains) > 1:
            domains[MEAN] = mean_lines(list(domains.values()))
    panels = {
        group: domains
        for group, domains in panels.items()
        if any(len(line.keys() - {0}) > 1 for lines in domains.values() for line in lines.values())
    }
    drawn = [line for domains in panels.values() for lines in domains.values() for line in lines.values()]
    if not drawn:
        whole = sum(bool(record["num_train"]) and record["shots"] < 1 for record in records)
        counted = f" ({whole} of the {len(records)} runs used all images)" if whole else ""
        raise UserError(
            f"no method was measured with two or more numbers of shots{counted}: give runs with different --shots, or "
            "runs of the task 'probe' (dassl-clip task METHOD DATASET SEED --task probe)"
        )
    shown = [(group, name) for group, domains in panels.items() for name in domains]
    only_means = len(shown) > MOST_PANELS
    if only_means:
        shown = [(group, name) for group, name in shown if name == MEAN or len(panels[group]) == 1]
    lines = list(dict.fromkeys(line for group, name in shown for line in panels[group][name]))
    check_lines(lines)
    with styled():
        figure, axes = new_figure(len(shown))
        handles: dict[str, Any] = {}
        for panel, (group, name) in zip(axes, shown):
            content = panels[group][name]
            counts = sorted({shots for line in content.values() for shots in line} - {0})
            for label, line in content.items():
                style = look(lines.index(label)) | {"linestyle": "-"}
                if set(line) == {0}:
                    mean, _ = mean_and_spread(list(line[0].values()))
                    style = {"color": style["color"], "linestyle": "--"}
                    handles[label] = panel.axhline(mean, **style)
                else:
                    handles[label] = draw_line(panel, {x: y for x, y in line.items() if x}, style)
            if counts:
                panel.set_xscale("log", base=2)
                panel.set_xticks(counts, [f"{count:g}" for count in counts], minor=False)
                panel.minorticks_off()
            panel.set(xlabel="training images per class", ylabel="accuracy (%)")
            panel.set_title(shortened(", ".join(filter(None, (group[0], group[1], name))), 46))
        text = f"Accuracy on {split} images by the number of labelled training images per class."
        text += " Dashed: no label is trained on." if any(set(line) == {0} for line in drawn) else ""
        text += " Means over the domains only." if only_means else ""
        shown_records = [record for record in records if measured_in(record) in panels]
        notes = sorted({note for record in shown_records for note in record.get("reading_notes", [])})
        text += f"\nHow the extra tests were made: {'; '.join(notes)}." if notes else ""
        return finish("shots", figure, handles, caption(shown_records, text))


def setting_plot(
    records: Sequence[Record],
    sweeps: Sequence[Mapping[float, float]],
    name: str,
    axis: str,
    images: str,
    diagnostic: bool = False,
) -> Plot:
    """Accuracy over a setting that is fixed after training; a ring marks the value that a run was tested with.

    Args:
        records: records of the runs, which hold that value under the setting's name.
        sweeps: for each of them, value -> accuracy in percent.
        name: of the setting.
        axis: what the setting is, under the axis.
        images: what was scored, such as `source validation images`.
        diagnostic: whether these are test images, which nothing may be chosen on.

    Raises:
        UserError: a record lacks the setting's value, or there are too many lines.
    """
    for record in records:
        if isinstance(record.get(name), bool) or not isinstance(record.get(name), (int, float)):
            raise UserError(f"a record holds {record.get(name)!r:.80} as {name}, expected a number")
    labels = distinguishing_labels(records)
    with styled():
        figure, (panel,) = new_figure(1, width=5.4, height=3.4)
        handles: dict[str, Any] = {}
        for index, label in enumerate(dict.fromkeys(labels)):
            runs = [(record, sweep) for record, sweep, other in zip(records, sweeps, labels) if other == label]
            line: Cells = {}
            for record, sweep in runs:
                for value, accuracy in sweep.items():
                    line.setdefault(value, {})[record["seed"]] = accuracy
            handles[label] = draw_line(panel, line, look(index))
            for value in {record[name] for record, _ in runs} & line.keys():
                mean = statistics.fmean(line[value].values())
                panel.plot([value], [mean], "o", markersize=11, markerfacecolor="none", color=look(index)["color"])
        panel.set_xscale("symlog", linthresh=0.01, linscale=0.4)
        high = max(value for sweep in sweeps for value in sweep)
        ticks = [tick for tick in (0, 0.01, 0.03, 0.1, 0.3, 1) if tick <= high] + ([3, 10] if high > 1 else [])
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set(xlabel=axis, ylabel="accuracy (%)")
        text = f"Accuracy on {images} by {name}. Rings: the {name} that the run was tested with."
        if diagnostic:
            panel.set_title("DIAGNOSTIC: test images; nothing may be chosen here", color="#D55E00")
            text = f"DIAGNOSTIC, on test images: nothing may be chosen from this figure. {text}"
        return finish(name, figure, handles, caption(records, text))


def draw_line(panel: Any, line: Cells, style: Mapping[str, Any], band: bool = False) -> Any:
    """One line of means over seeds, at the x that all of its seeds have, with bars or a band."""
    seeds = set().union(*line.values())
    xs = sorted(x for x, values in line.items() if set(values) == seeds) or sorted(line)
    numbers = [mean_and_spread(list(line[x].values())) for x in xs]
    means, spreads = [mean for mean, _ in numbers], [spread or 0.0 for _, spread in numbers]
    if not band:
        return panel.errorbar(xs, means, spreads, **style)
    every = max(1, len(xs) // 10)
    (drawn,) = panel.plot(xs, means, markevery=every, **style)
    if any(spreads):
        low = [mean - spread for mean, spread in zip(means, spreads)]
        high = [mean + spread for mean, spread in zip(means, spreads)]
        panel.fill_between(xs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    return drawn


def _by_shots(record: Record, split: str) -> list[tuple[str, int, float]]:
    """Line, shots and accuracy of everything in a record that used so many labels a class; 0: none."""
    label = row_of(record).label
    probes = [
        (f"probe on {label}", int(match[1]), metrics["accuracy"])
        for name, metrics in record["metrics"].items()
        if (match := _PROBE.fullmatch(name))
    ]
    accuracy = record["metrics"][split]["accuracy"]
    if not record["num_train"]:
        return [*probes, (f"{label}, no labels", 0, accuracy)]
    return [*probes, (label, record["shots"], accuracy)] if record["shots"] > 0 else probes


def mean_lines(domains: Sequence[Mapping[str, Cells]]) -> dict[str, Cells]:
    """The lines that every domain has, at the shots and seeds that every domain has: means over the domains."""
    means: dict[str, Cells] = {}
    for label in (name for name in domains[0] if all(name in lines for lines in domains)):
        cells = [lines[label] for lines in domains]
        for shots in sorted(set.intersection(*(set(cell) for cell in cells))):
            seeds = sorted(set.intersection(*(set(cell[shots]) for cell in cells)))
            if seeds:
                mean = {seed: statistics.fmean(cell[shots][seed] for cell in cells) for seed in seeds}
                means.setdefault(label, {})[shots] = mean
    return means


def measured_in(record: Record) -> tuple[str, ...]:
    """What runs must share for their accuracies to stand in one panel."""
    backbone = record["backbone"]
    return record["dataset"], record["task"], record["class_subset"], backbone["name"], backbone["weights_hash"]
