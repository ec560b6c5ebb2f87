"""The curve of the weights between the start and the end of a training: what each of them scores in each domain."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import UserError
from .figures import Plot, caption, check_lines, finish, look, new_figure, shortened, styled
from .groups import MEAN, Record, column_of, row_of
from .plots import Cells, draw_line, mean_lines, measured_in

MOST_PANELS = 12


def between_plot(records: Iterable[Record]) -> Plot:
    """Accuracy on test images by the share of the end in the weights, a panel for each target domain and their mean.

    Raises:
        UserError: no record has such weights, or there are too many panels.
    """
    records = [record for record in records if record.get("training", {}).get("between")]
    if not records:
        raise UserError(
            "none of the runs tested weights between the start and the end of its training: give runs of a method that "
            "does, or whose ALPHAS name some"
        )
    panels: dict[tuple[str, ...], dict[str, dict[str, Cells]]] = {}
    for record in sorted(records, key=lambda record: record["finished_at"]):
        lines = panels.setdefault(measured_in(record), {}).setdefault(column_of(record), {})
        line = lines.setdefault(row_of(record).label, {})
        for name, share in record["training"]["between"].items():
            if name in record["metrics"]:
                line.setdefault(share, {})[record["seed"]] = record["metrics"][name]["accuracy"]
    for domains in panels.values():
        if len(domains) > 1:
            domains[MEAN] = mean_lines(list(domains.values()))
    shown = [(group, name) for group, domains in panels.items() for name in domains]
    if len(shown) > MOST_PANELS:
        raise UserError(f"{len(shown)} domains would have a panel each, at most {MOST_PANELS} fit: give --targets")
    rows = list(dict.fromkeys(label for group, name in shown for label in panels[group][name]))
    check_lines(rows)
    with styled():
        figure, axes = new_figure(len(shown))
        handles = {}
        for panel, (group, name) in zip(axes, shown):
            for label, line in panels[group][name].items():
                handles[label] = draw_line(panel, line, look(rows.index(label)))
            panel.set(xlabel="share of the end in the weights", ylabel="accuracy (%)")
            panel.set_title(shortened(", ".join(filter(None, (group[0], group[1], name))), 46))
        text = "Accuracy on test images of the weights between the start (0) and the end (1) of a training. "
        text += "A share is fixed before the test: nothing may be chosen from this figure."
        return finish("between", figure, handles, caption(records, text))
