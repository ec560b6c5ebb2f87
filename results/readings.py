"""Tables of the further readings of runs: other prompts, few-shot probes, attacked images, other proxies.

A record's `metrics` hold the split that was tested (`test`) and any number of named readings of the same images, such
as `C`, `4-shot`, `FGSM / C`, `text proxy`. Here they become rows. Over the prompt forms C, CP and PC stand CLAP's
measures of how much the prompt matters (Cai et al., ECCV 2024, Table 4): `R`, the range; `delta`, the population
standard deviation; and `Delta_NC`, what four tokens of noise before the class name cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .tables import MEAN, Group, Row, Table, cell_text, group_title, header_lines

SPLITS = ("test", "val", "train")
FORMS = ("C", "CP", "PC")
NOISE = "NC"
MEASURES: Mapping[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "R": (FORMS, lambda *forms: max(forms) - min(forms)),
    "delta": (FORMS, lambda *forms: statistics.pstdev(forms)),
    "Delta_NC": (("C", NOISE), lambda plain, noisy: plain - noisy),
}


def reading_names(group: Group) -> list[str]:
    """Names of the readings in any run of a group, in the order in which the runs have them."""
    runs = [run for cells in group.runs.values() for seeds in cells.values() for run in seeds.values()]
    return list(dict.fromkeys(name for run in runs for name in run["metrics"] if name not in SPLITS))


def reading_tables(
    groups: Sequence[Group],
    rows: Sequence[Row] | None = None,
    columns: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Table]:
    """One table for each group whose runs have further readings.

    Args:
        groups: runs that may share a table each.
        rows: methods wanted, in this order; default: all.
        columns: domains wanted, in this order; default: all.
        seeds: seeds wanted; default: all.
    """
    tables = [_reading_table(group, rows, columns, seeds) for group in groups if reading_names(group)]
    return [table for table in tables if table.rows]


def _reading_table(
    group: Group, rows: Sequence[Row] | None, columns: Sequence[str] | None, seeds: Sequence[int] | None
) -> Table:
    seeds = list(seeds) if seeds is not None else group.seeds
    domains = list(columns) if columns is not None else group.domains
    names = reading_names(group)
    rows = [row for row in (rows if rows is not None else group.rows) if row in group.runs]
    rows = [row for row in rows if any(_values(group, row, name, domains, seeds) for name in names)]
    lines = []
    for name in names:
        for row in rows:
            cells = _values(group, row, name, domains, seeds)
            if cells:
                lines.append([f"{name}: {row.label}", *_texts(cells, domains, seeds)])
    for measure, (needed, combine) in MEASURES.items():
        for row in rows:
            forms = [_values(group, row, name, domains, seeds) for name in needed]
            if all(forms):
                cells = {
                    domain: {
                        seed: combine(*(form[domain][seed] for form in forms))
                        for seed in forms[0][domain]
                        if all(seed in form[domain] for form in forms)
                    }
                    for domain in [*domains, MEAN]
                }
                lines.append([f"{measure}: {row.label}", *_texts(cells, domains, seeds)])
    notes = sorted({f"{row.label}: {note}" for row in rows for note in _notes(group, row)})
    title = f"{group_title(group)}: further readings"
    return Table(title, header_lines(group, rows, seeds), ["accuracy (%)", *domains, MEAN], lines, notes)


def _values(
    group: Group, row: Row, name: str, domains: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Domain (and `MEAN`, for seeds that have every domain) -> seed -> accuracy of a reading; {} if no run has it."""
    cells: dict[str, dict[int, float]] = {}
    for domain in domains:
        runs = group.runs[row].get(domain, {})
        cells[domain] = {
            seed: run["metrics"][name]["accuracy"]
            for seed, run in sorted(runs.items())
            if seed in seeds and name in run["metrics"]
        }
    if not any(cells.values()):
        return {}
    whole = [seed for seed in seeds if all(seed in cell for cell in cells.values())]
    cells[MEAN] = {seed: statistics.fmean(cells[domain][seed] for domain in domains) for seed in whole}
    return cells


def _texts(cells: Mapping[str, Mapping[int, float]], domains: Sequence[str], seeds: Sequence[int]) -> list[str]:
    return [cell_text(list(cells.get(name, {}).values()), len(seeds)) for name in [*domains, MEAN]]


def _notes(group: Group, row: Row) -> list[str]:
    """What the runs say of how their readings were taken."""
    runs: list[Mapping[str, Any]] = [run for cell in group.runs[row].values() for run in cell.values()]
    return sorted({note for run in runs for note in run.get("reading_notes", [])})
