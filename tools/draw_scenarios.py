"""The picture of docs/results.md: what each method gains over the reference on whole sets, batches, streams and orders.

It draws the first table that `dassl-clip table FOLDER --reference ZeroshotCLIP` prints of each task; it computes
nothing. Needs matplotlib: pip install -e ".[plots]"

example: dassl-clip compare icons --task batch stream online --out output/scenarios &&
python tools/draw_scenarios.py output/scenarios
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from draw_readme import REFERENCE, ROOT, read_table

TASKS = ("batch", "stream", "online")
GAIN = "gain of "
SPAN = 20  # points at which the colours end


def gains(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Methods, scenarios, and the gain of each method in each, `[methods, scenarios]`; NaN where one does not apply."""
    rows: dict[str, dict[str, float]] = {}
    for task in TASKS:
        for label, cells in read_table(folder, task).items():
            if label.startswith(GAIN):
                rows.setdefault(label.removeprefix(GAIN).replace(" (icons)", ""), {}).update(cells)
    scenarios = [
        name for name in dict.fromkeys(name for cells in rows.values() for name in cells) if "worst" not in name
    ]
    values = [[cells.get(name, np.nan) for name in scenarios] for cells in rows.values()]
    return list(rows), scenarios, np.array(values)


def main() -> int:
    """Read the folder's tables and write the picture."""
    line = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    line.add_argument("folder", type=Path, metavar="FOLDER", help="with the runs of the tasks batch, stream and online")
    line.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "scenarios.png", metavar="FILE")
    options = line.parse_args()
    methods, scenarios, values = gains(options.folder)
    figure, axes = plt.subplots(figsize=(1.1 * len(scenarios) + 2, 0.42 * len(methods) + 1.2))
    axes.imshow(np.clip(values, -SPAN, SPAN), cmap="RdBu", vmin=-SPAN, vmax=SPAN, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text, dark = ("-", False) if np.isnan(value) else (f"{value:+.1f}", abs(value) > 0.6 * SPAN)
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(scenarios)), scenarios, rotation=30, ha="left", fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(methods)), methods, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel(f"gain over {REFERENCE} in points, mean over the four styles", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.out, dpi=110)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
