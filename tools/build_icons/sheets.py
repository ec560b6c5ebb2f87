"""Contact sheets: all pictures of a class on one page, a row for each domain and split."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .selection import DOMAINS, SPLITS
from .store import read_png, read_split

CELL = 68
MARGIN = 110


def class_sheet(label: str, rows: list[dict[str, str]], folder: Path) -> Image.Image:
    """The sheet of one class.

    Args:
        label: class name.
        rows: rows of the split file.
        folder: the data set's folder.
    """
    cells: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["class"] == label:
            cells[row["domain"], row["split"]].append(row["path"])
    order = [(domain, split) for domain in DOMAINS for split in SPLITS]
    width = max(len(paths) for paths in cells.values())
    page = Image.new("RGB", (MARGIN + width * CELL, len(order) * CELL + 20), "white")
    draw = ImageDraw.Draw(page)
    draw.text((4, 4), label, fill="black")
    for line, cell in enumerate(order):
        top = 20 + line * CELL
        draw.text((4, top + CELL // 3), f"{cell[0]} {cell[1]}", fill="black")
        for column, path in enumerate(cells[cell]):
            picture = Image.fromarray(np.ascontiguousarray(read_png(folder / path)))
            page.paste(picture, (MARGIN + column * CELL, top))
    return page


def write_sheets(folder: Path, out: Path) -> list[Path]:
    """Write a sheet for every class.

    Args:
        folder: the data set's folder.
        out: where the sheets go.

    Returns:
        their paths.
    """
    rows = read_split(folder)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for label in sorted({row["class"] for row in rows}):
        path = out / f"{label.replace(' ', '_')}.png"
        class_sheet(label, rows, folder).save(path)
        paths.append(path)
    return paths
