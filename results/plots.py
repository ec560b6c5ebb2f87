"""Figures from run records alone: accuracy by domain and by shots, loss curves, accuracy by CLAP's alpha.

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
from .plot_style import GREY, Plot, finish, look, new_figure, seeds_line, shortened, styled
from .records import protocol_of
from .tables import MEAN, Group, column_of, group_records, mean_and_spread, row_of

Record = Mapping[str, Any]
MOST_LINES = 24
_LARGEST = 1e100  # beyond it there are no ticks
MOST_PANELS = 12
RATE = "lr"
COUNTERS = ("epoch", "step")
_SHOT_READING = re.compile(r"(\d+)-shot")
_Cells = dict[float, dict[int, float]]  # x -> seed -> y


def domains_plot(found: Iterable[Record], split: str = "test") -> Plot:
    """Accuracy of each method in each target domain and on average; one panel for each group that shares a table.

    Raises:
        UserError: no record has that split, or there are too many groups for one figure.
    """
    groups = group_records(found, split)
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
        for panel, group in zip(axes, groups):
            columns = [*group.domains, MEAN] if len(group.domains) > 1 else group.domains
            for row in group.rows:
                shift = 0.7 * ((group.rows.index(row) + 0.5) / len(group.rows) - 0.5)
                cells = {column: list(group.accuracies(row, column).values()) for column in columns}
                places = [place + shift for place, column in enumerate(columns) if cells[column]]
                numbers = [mean_and_spread(values) for values in cells.values() if values]
                style = look(rows.index(row)) | {"linestyle": "none"}
                bars = [spread or 0.0 for _, spread in numbers]
                handles[row.label] = panel.errorbar(places, [mean for mean, _ in numbers], bars, **style)
            panel.set_xticks(range(len(columns)), [shortened(name, 18) for name in columns])
            panel.tick_params(axis="x", rotation=0 if len(columns) < 6 else 45)
            panel.set(ylabel="accuracy (%)", title=shortened(_group_name(group, groups), 46))
            panel.grid(axis="x", visible=False)
            if MEAN in columns:
                panel.axvline(len(columns) - 1.5, color=GREY, linewidth=0.8)
        records = _records_of(groups)
        return finish("domains", figure, handles, caption(records, f"Accuracy by target domain on {split} images."))


def curves_plot(found: Iterable[Record]) -> Plot:
    """Loss terms and learning rate over training; one panel a term, one line a method and target.

    Raises:
        UserError: no record has a history, or there are too many lines.
    """
    found = list(found)
    records = [record for record in found if any(entry.keys() - set(COUNTERS) for entry in record.get("history", ()))]
    if not records:
        methods = ", ".join(sorted({record["method"] for record in found}))
        raise UserError(
            f"none of the {len(found)} runs ({methods}) has a history of its losses: the method trains nothing step by "
            "step, or the run was made before histories were kept; run it again to have one"
        )
    labels = distinguishing_labels(records)
    lines = list(dict.fromkeys(labels))
    _check_lines(lines)
    cells: dict[tuple[str, str], dict[str, _Cells]] = {}
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
                handles[label] = _draw(panel, line, look(lines.index(label)), band=True)
            panel.set(xlabel=counter, title="learning rate" if term == RATE else shortened(term, 40))
            panel.locator_params(axis="x", integer=True)
            if term == RATE:
                panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        text = "The loss (a weighted sum) and its unweighted terms: means over an epoch, or since the last check, on "
        text += "training data."
        left_out = len(found) - len(records)
        text += f" {left_out} of {len(found)} runs have no history." if left_out else ""
        ordered = {label: handles[label] for label in lines if label in handles}
        return finish("curves", figure, ordered, caption(records, text, "bands"))


def shots_plot(found: Iterable[Record], split: str = "test") -> Plot:
    """Accuracy over the number of training images a class, of runs and of few-shot probes; dashed: no labels used.

    Raises:
        UserError: nothing was measured with two or more numbers of shots.
    """
    records = [record for record in found if split in record["metrics"]]
    # group -> domain -> line -> shots -> seed -> accuracy
    panels: dict[tuple[str, ...], dict[str, dict[str, _Cells]]] = {}
    for record in sorted(records, key=lambda record: record["finished_at"]):
        measured = panels.setdefault(_measured(record), {}).setdefault(column_of(record), {})
        for name, shots, accuracy in _shot_readings(record, split):
            measured.setdefault(name, {}).setdefault(shots, {})[record["seed"]] = accuracy
    for domains in panels.values():
        if len(domains) > 1:
            domains[MEAN] = _mean_lines(list(domains.values()))
    panels = {group: domains for group, domains in panels.items() if _most_shots(domains) > 1}
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
    _check_lines(lines)
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
                    handles[label] = _draw(panel, {x: y for x, y in line.items() if x}, style)
            if counts:
                panel.set_xscale("log", base=2)
                panel.set_xticks(counts, [f"{count:g}" for count in counts], minor=False)
                panel.minorticks_off()
            panel.set(xlabel="training images a class", ylabel="accuracy (%)")
            panel.set_title(shortened(", ".join(filter(None, (group[0], group[1], name))), 46))
        text = f"Accuracy on {split} images by the number of labelled training images a class."
        text += " Dashed: no label is trained on." if any(set(line) == {0} for line in drawn) else ""
        text += " Means over the domains only." if only_means else ""
        shown_records = [record for record in records if _measured(record) in panels]
        notes = sorted({note for record in shown_records for note in record.get("reading_notes", [])})
        text += f"\nHow readings were taken: {'; '.join(notes)}." if notes else ""
        return finish("shots", figure, handles, caption(shown_records, text))


def alpha_plot(
    found: Sequence[Record], sweeps: Sequence[Mapping[float, float]], images: str, diagnostic: bool = False
) -> Plot:
    """Accuracy over the weight of CLAP's content head; a ring marks the weight that a run was tested with.

    Args:
        found: records of CLAP's runs.
        sweeps: for each of them, weight -> accuracy in percent.
        images: what was scored, such as `source validation images`.
        diagnostic: whether these are test images, which nothing may be chosen on.
    """
    labels = distinguishing_labels(found)
    lines = list(dict.fromkeys(labels))
    _check_lines(lines)
    with styled():
        figure, (panel,) = new_figure(1, width=5.4, height=3.4)
        handles: dict[str, Any] = {}
        for index, label in enumerate(lines):
            runs = [(record, sweep) for record, sweep, own in zip(found, sweeps, labels) if own == label]
            line: _Cells = {}
            for record, sweep in runs:
                for alpha, accuracy in sweep.items():
                    line.setdefault(alpha, {})[record["seed"]] = accuracy
            handles[label] = _draw(panel, line, look(index))
            for alpha in {record["alpha"] for record, _ in runs} & line.keys():
                mean = statistics.fmean(line[alpha].values())
                panel.plot([alpha], [mean], "o", markersize=11, markerfacecolor="none", color=look(index)["color"])
        panel.set_xscale("symlog", linthresh=0.01, linscale=0.4)
        ticks = [0, 0.01, 0.03, 0.1, 0.3, 1]
        high = max(alpha for sweep in sweeps for alpha in sweep)
        ticks = [tick for tick in ticks if tick <= high] + [3, 10] * (high > 1)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set(xlabel="alpha, the weight of the content head (0: plain CLIP)", ylabel="accuracy (%)")
        text = f"CLAP's accuracy on {images} by alpha. Rings: the alpha that the run was tested with."
        if diagnostic:
            panel.set_title("DIAGNOSTIC: test images; nothing may be chosen here", color="#D55E00")
            text = f"DIAGNOSTIC, on test images: nothing may be chosen from this figure. {text}"
        return finish("alpha", figure, handles, caption(found, text))


def caption(found: Sequence[Record], what: str, spread: str = "error bars") -> str:
    """What was measured, on what, by which rules and how often.

    Args:
        found: the records that the figure shows.
        what: a sentence or more on what is drawn.
        spread: what shows the spread over seeds; "" where no spread is drawn.
    """
    protocols = {
        protocol_of(r["source_domains"], r["target_domains"], r["task"], r.get("data_protocol", "")) for r in found
    }
    backbones = {f"{r['backbone']['name']} (weights {r['backbone']['weights_hash'][:12]})" for r in found}
    counts = sorted({r["shots"] for r in found if r["num_train"] and r["shots"] > 0})
    shots = [", ".join(map(str, counts))] * bool(counts)
    shots += ["all"] * any(r["num_train"] and r["shots"] < 1 for r in found)
    facts = {
        "data": {r["dataset"] for r in found},
        "protocol": protocols,
        "classes": {r["class_subset"] for r in found},
        "training images a class": shots or ["none"],
        "backbone": backbones,
        "selection rule": {r["selection_rule"] for r in found},
    }
    lines = [what, "; ".join(f"{key}: {shortened(' | '.join(sorted(facts[key])), 200)}" for key in facts)]
    seeds = sorted({record["seed"] for record in found})
    listed = ", ".join(map(str, seeds))
    lines.append(seeds_line(seeds, spread) if spread else f"seed{'s' * (len(seeds) > 1)}: {listed}")
    own: dict[str, set[int]] = {row_of(record).label: set() for record in found}
    for record in found:
        own[row_of(record).label].add(record["seed"])
    fewer = [f"{label}: n = {len(values)}" for label, values in own.items() if len(values) < len(seeds)]
    lines[-1] += f"; {', '.join(fewer)}" if fewer else ""
    transductive = sorted({row_of(record).label for record in found if record["transductive"]})
    if transductive:
        lines.append(f"Transductive (uses unlabelled test images): {', '.join(transductive)}.")
    return "\n".join(lines)


def distinguishing_labels(found: Sequence[Record]) -> list[str]:
    """A label for each record: its method, and those of task, data set, target, shots, ... in which records differ."""
    parts = [
        {
            "task": record["task"],
            "dataset": record["dataset"],
            "target": column_of(record),
            "subset": record["class_subset"],
            "shots": f"{record['shots']} shots" if record["shots"] > 0 else "all images",
            "backbone": record["backbone"]["name"],
            "weights": record["backbone"]["weights_hash"][:8],
        }
        for record in found
    ]
    differing = [key for key in (parts[0] if parts else ()) if len({part[key] for part in parts}) > 1]
    if "backbone" in differing and len({(p["backbone"], p["weights"]) for p in parts}) == len(
        {p["backbone"] for p in parts}
    ):
        differing = [key for key in differing if key != "weights"]
    return [
        ", ".join([row_of(record).label, *(part[key] for key in differing if part[key])])
        for record, part in zip(found, parts)
    ]


def _draw(panel: Any, line: _Cells, style: Mapping[str, Any], band: bool = False) -> Any:
    """One line of means over seeds, at the places that all of its seeds have, with bars or a band."""
    seeds = set().union(*line.values())
    places = sorted(place for place, values in line.items() if set(values) == seeds) or sorted(line)
    numbers = [mean_and_spread(list(line[place].values())) for place in places]
    means, spreads = [mean for mean, _ in numbers], [spread or 0.0 for _, spread in numbers]
    if not band:
        return panel.errorbar(places, means, spreads, **style)
    every = max(1, len(places) // 10)
    (drawn,) = panel.plot(places, means, markevery=every, **style)
    if any(spreads):
        low = [mean - spread for mean, spread in zip(means, spreads)]
        high = [mean + spread for mean, spread in zip(means, spreads)]
        panel.fill_between(places, low, high, color=style["color"], alpha=0.18, linewidth=0)
    return drawn


def _shot_readings(record: Record, split: str) -> list[tuple[str, int, float]]:
    """Line, shots and accuracy of everything in a record that used so many labels a class; 0: none."""
    label = row_of(record).label
    probes = [
        (f"probe on {label}", int(match[1]), metrics["accuracy"])
        for name, metrics in record["metrics"].items()
        if (match := _SHOT_READING.fullmatch(name))
    ]
    accuracy = record["metrics"][split]["accuracy"]
    if not record["num_train"]:
        return [*probes, (f"{label}, no labels", 0, accuracy)]
    return [*probes, (label, record["shots"], accuracy)] if record["shots"] > 0 else probes


def _mean_lines(domains: Sequence[Mapping[str, _Cells]]) -> dict[str, _Cells]:
    """The lines that every domain has, at the shots and seeds that every domain has: means over the domains."""
    means: dict[str, _Cells] = {}
    for label in (name for name in domains[0] if all(name in lines for lines in domains)):
        cells = [lines[label] for lines in domains]
        for shots in sorted(set.intersection(*(set(cell) for cell in cells))):
            seeds = sorted(set.intersection(*(set(cell[shots]) for cell in cells)))
            if seeds:
                mean = {seed: statistics.fmean(cell[shots][seed] for cell in cells) for seed in seeds}
                means.setdefault(label, {})[shots] = mean
    return means


def _most_shots(domains: Mapping[str, Mapping[str, _Cells]]) -> int:
    """The most numbers of shots that one line has."""
    return max((len(line.keys() - {0}) for lines in domains.values() for line in lines.values()), default=0)


def _measured(record: Record) -> tuple[str, ...]:
    """What runs must share for their accuracies to stand in one panel."""
    backbone = record["backbone"]
    return record["dataset"], record["task"], record["class_subset"], backbone["name"], backbone["weights_hash"]


def _group_name(group: Group, groups: Sequence[Group]) -> str:
    """Data set and task of a panel, and the other facts in which the panels differ."""
    facts = dict(group.facts)
    facts["shots"] = f"{facts['shots']} shots" if facts["shots"] > 0 else "all images"
    differing = [key for key in ("shots", "class_subset", "backbone") if len({g.facts[key] for g in groups}) > 1]
    return ", ".join(str(facts[key]) for key in ("dataset", "task", *differing) if facts[key])


def _records_of(groups: Sequence[Group]) -> list[Record]:
    return [
        run for group in groups for cells in group.runs.values() for runs in cells.values() for run in runs.values()
    ]


def _check_lines(lines: Sequence[str]) -> None:
    """Refuse a figure that nobody could read.

    Raises:
        UserError: there are too many lines.
    """
    if len(lines) > MOST_LINES:
        raise UserError(
            f"the runs make {len(lines)} lines, and more than {MOST_LINES} cannot be told apart: give fewer run "
            "folders, or choose with --rows, --targets and --tasks"
        )
