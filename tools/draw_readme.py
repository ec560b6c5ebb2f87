"""The picture of README.md: samples of the four styles, and what each method gains over the reference on each of them.

It draws the table that `dassl-clip table FOLDER --reference ZeroshotCLIP` prints of finished runs; it computes nothing.
Needs matplotlib: pip install -e ".[plots]"

example: dassl-clip compare icons --seeds 1 --out output/readme && python tools/draw_readme.py output/readme
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from dassl_clip.cli import table

ROOT = Path(__file__).resolve().parents[1]
ICONS = ROOT / "embedded" / "icons"
REFERENCE = "ZeroshotCLIP"
TASKS = {
    "fewshot": ("inside the style: 16 labelled images per class of it", "#1b6ca8"),
    "lodo": ("leave the style out: labelled images of the other three", "#e07b39"),
}
CLASSES = ("boat", "cake", "fish", "key", "tree")  # of the samples
ROWS = ("CLAP", "CoOp", "GOPro", "LinearProbe", "InMaP", "GOPro + InMaP", "LinearProbe + InMaP")


def read_table(folder: Path, task: str) -> dict[str, dict[str, float]]:
    """Row label -> column -> number of the table of one task, rows of gains included."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = table.main([str(folder / task), "--reference", REFERENCE, "--format", "json"])
    if code:
        sys.exit(code)
    rows: dict[str, dict[str, float]] = {}
    for cell in json.loads(printed.getvalue())[0]["cells"]:  # tables of further metrics may follow
        if cell["mean"] is not None:
            rows.setdefault(cell["row"], {})[cell["column"]] = cell["mean"]
    return rows


def draw_samples(axes, style: str) -> None:
    """One sample of each class, side by side."""
    strip = Image.new("RGB", (72 * len(CLASSES), 64), "white")
    for index, name in enumerate(CLASSES):
        path = sorted((ICONS / style / name).iterdir())[0]
        strip.paste(Image.open(path).convert("RGB"), (72 * index + 4, 0))
    axes.imshow(strip)
    axes.set_title(style, fontsize=12, fontweight="bold")
    axes.axis("off")


def draw_gains(axes, column: str, tables: dict[str, dict[str, dict[str, float]]]) -> None:
    """One bar per method and task."""
    height = 0.38
    for number, (task, (_, colour)) in enumerate(TASKS.items()):
        gains = [tables[task][f"gain of {name} (icons)"][column] for name in ROWS]
        places = [index + (number - 0.5) * height for index in range(len(ROWS))]
        axes.barh(places, gains, height, color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    zeroshot = " / ".join(f"{tables[task][f'{REFERENCE} (icons)'][column]:.1f}" for task in TASKS)
    axes.set_xlabel(f"zero-shot: {zeroshot} %", fontsize=9)
    axes.set_ylim(len(ROWS) - 0.5, -0.5)
    axes.set_yticks(range(len(ROWS)), ROWS, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main(argv: list[str] | None = None) -> None:
    """Read the tables, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of `dassl-clip compare icons`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "gains.png")
    options = parser.parse_args(argv)
    tables = {task: read_table(options.folder, task) for task in TASKS}
    columns = list(tables["lodo"][f"{REFERENCE} (icons)"])  # four styles and their mean
    figure, (samples, gains) = plt.subplots(
        2, len(columns), figsize=(12.5, 3.9), height_ratios=[1, 3.4], layout="constrained"
    )
    for index, column in enumerate(columns):
        if (ICONS / column).is_dir():
            draw_samples(samples[index], column)
        else:
            samples[index].text(0.5, 0, "mean of the four", ha="center", fontsize=12, fontweight="bold")
            samples[index].axis("off")
        gains[index].sharex(gains[0])
        draw_gains(gains[index], column, tables)
        if index:
            gains[index].set_yticklabels([])
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in TASKS.values()]
    labels = [text for text, _ in TASKS.values()]
    title = "accuracy gained over zero-shot CLIP, in points:"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=2, frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
