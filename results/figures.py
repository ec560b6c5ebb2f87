"""How all figures look: colours that colour-blind readers tell apart, a caption inside, files written whole.

The caption says what was measured, on what, by which rules and how often. The colours are those of Okabe and Ito
("Color Universal Design", 2008). Each line also has a marker and a line style of its own, so that a figure can be read
in grey. Text is never read as a formula: names with `$` or `_` stay as they are.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .budgets import is_transductive
from .errors import UserError
from .escaping import one_line, printable
from .files import write_bytes_atomically
from .groups import Record, column_of, row_of
from .protocols import protocols

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))
GREY = "#B0B0B0"
FORMATS = ("png", "svg", "pdf")
DEFAULT_FORMATS = FORMATS[:2]
NEEDED = "plots need the package matplotlib: pip install 'dassl-clip[plots]', or pip install matplotlib"
PANELS_PER_ROW = 4
CHARACTERS_PER_INCH = 17
LEGEND_CHARACTERS_PER_INCH = (14, 11, 8)  # of usual names; of names of wide letters fewer fit
MOST_LINES = 24
_SETTINGS: dict[Any, Any] = {  # matplotlib types its keys one by one
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dassl-clip",
    "pdf.fonttype": 42,  # fonts that publishers accept, and text that can be selected
    "savefig.dpi": 160,
}


@dataclass
class Plot:
    """A finished figure."""

    name: str  # a word for its files: `curves`, `domains`, ...
    caption: str  # what it shows; drawn inside the figure too
    figure: Figure

    def svg(self) -> str:
        """The figure as an SVG document, the same for the same data."""
        return self._bytes("svg").decode("utf-8")

    def save(self, stem: Path, kinds: Sequence[str] = DEFAULT_FORMATS) -> list[Path]:
        """Write `<stem>.<kind>` for each kind of `FORMATS`, each whole or not at all; returns the paths."""
        paths = []
        for kind in kinds:
            path = stem.with_name(f"{stem.name}.{kind}")
            write_bytes_atomically(path, self._bytes(kind))
            paths.append(path)
        return paths

    def _bytes(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        metadata: dict[str, Any] = {"Title": self.name, **date}  # no date: the same data give the same file
        with styled():
            self.figure.savefig(buffer, format=kind, metadata=metadata)
        return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """A context in which figures are made and drawn in the project's style, whatever the user's own settings are.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(NEEDED) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the `index`-th line; 64 lines have different looks."""
    turn = (index + index // len(COLOURS)) % len(MARKERS)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[turn], "linestyle": LINES[turn]}


def new_figure(panels: int, width: float = 3.3, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, at most four in a row; `width` and `height` in inches are those of one panel."""
    from matplotlib.figure import Figure

    columns = min(panels, PANELS_PER_ROW)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(columns * width, 5.2), rows * height + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def finish(name: str, figure: Figure, handles: Mapping[str, Any], caption: str, markerscale: float = 1.0) -> Plot:
    """Put the legend of the drawn things (`handles`, by label) above the panels and the caption below them."""
    handles, caption = {printable(one_line(label)): drawn for label, drawn in handles.items()}, printable(caption)
    width = figure.get_size_inches()[0]
    lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, int(width * CHARACTERS_PER_INCH))]
    if handles:
        _add_legend(figure, handles, markerscale)
    figure.set_figheight(figure.get_figheight() + 0.13 * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="#333333")
    return Plot(name, caption, figure)


def _add_legend(figure: Figure, handles: Mapping[str, Any], markerscale: float) -> None:
    """Put the legend above the panels, in as many columns as fit, long names on several lines; the figure grows."""
    height = figure.get_figheight()
    for characters in LEGEND_CHARACTERS_PER_INCH:
        room = int(figure.get_figwidth() * characters)
        labels = ["\n".join(textwrap.wrap(label, room - 6)) for label in handles]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        columns = max(1, min(len(handles), room // (longest + 6)))
        layout: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "markerscale": markerscale}
        legend = figure.legend(list(handles.values()), labels, fontsize=8, **layout)
        rows = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(height + 0.18 * rows)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width or characters == LEGEND_CHARACTERS_PER_INCH[-1]:
            break
        legend.remove()


def shortened(text: str, limit: int) -> str:
    """A text on one line, cut to a number of characters, with an ellipsis where something was cut."""
    text = printable(one_line(text))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def caption(records: Sequence[Record], what: str, spread: str = "error bars") -> str:
    """What was measured, on what, by which rules and how often.

    Args:
        records: the records that the figure shows.
        what: a sentence or more on what is drawn.
        spread: what shows the spread over seeds; "" where no spread is drawn.
    """
    counts = sorted({r["shots"] for r in records if r["num_train"] and r["shots"] > 0})
    shots = [", ".join(map(str, counts))] if counts else []
    if any(r["num_train"] and r["shots"] < 1 for r in records):
        shots.append("all")
    facts = {
        "data": {r["dataset"] for r in records},
        "protocol": protocols(records),
        "classes": {r["class_subset"] for r in records},
        "training images per class": shots or ["none"],
        "backbone": {f"{r['backbone']['name']} (weights {r['backbone']['weights_hash'][:12]})" for r in records},
        "selection rule": {r["selection_rule"] for r in records},
    }
    seeds_by_row: dict[str, set[int]] = {}
    for record in records:
        seeds_by_row.setdefault(row_of(record).label, set()).add(record["seed"])
    seeds = sorted(set().union(*seeds_by_row.values()))
    fewer = [f"{label}: n = {len(values)}" for label, values in seeds_by_row.items() if len(values) < len(seeds)]
    listed = ", ".join(map(str, seeds))
    if not spread:
        measured = f"seed{'s' * (len(seeds) > 1)}: {listed}"
    elif len(seeds) == 1:
        measured = f"n = 1 seed ({listed}), no {spread}"
    else:
        measured = f"n = {len(seeds)} seeds ({listed}); {spread}: sample standard deviation over seeds"
    lines = [
        what,
        "; ".join(f"{key}: {shortened(' | '.join(sorted(values)), 200)}" for key, values in facts.items()),
        "; ".join([measured, *([", ".join(fewer)] if fewer else [])]),
    ]
    transductive = sorted({row_of(record).label for record in records if is_transductive(record)})
    if transductive:
        lines.append(f"Transductive (uses unlabelled test images): {', '.join(transductive)}.")
    return "\n".join(lines)


def distinguishing_labels(records: Sequence[Record]) -> list[str]:
    """A label for each record: its method, and those of task, data set, target, shots, ... in which records differ.

    Raises:
        UserError: there are more labels than a reader can tell apart.
    """
    facts = [
        {
            "task": record["task"],
            "dataset": record["dataset"],
            "target": column_of(record),
            "subset": record["class_subset"],
            "shots": f"{record['shots']} shots" if record["shots"] > 0 else "all images",
            "backbone": record["backbone"]["name"],
            "weights": record["backbone"]["weights_hash"][:8],
        }
        for record in records
    ]
    differing = [key for key in (facts[0] if facts else ()) if len({fact[key] for fact in facts}) > 1]
    backbones = {fact["backbone"] for fact in facts}
    if len(backbones) > 1 and len({(fact["backbone"], fact["weights"]) for fact in facts}) == len(backbones):
        differing = [key for key in differing if key != "weights"]
    labels = [
        ", ".join([row_of(record).label, *(fact[key] for key in differing if fact[key])])
        for record, fact in zip(records, facts)
    ]
    check_lines(set(labels))
    return labels


def check_lines(lines: Collection[str]) -> None:
    """Refuse a figure that nobody could read.

    Raises:
        UserError: there are too many lines.
    """
    if len(lines) > MOST_LINES:
        raise UserError(
            f"the runs make {len(lines)} lines, and more than {MOST_LINES} cannot be told apart: give fewer run "
            "folders, or choose with --rows, --targets and --tasks"
        )
