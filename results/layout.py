"""Text for a terminal: tables split into blocks of columns, and lines wrapped, to a width of 120 at most."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

import tabulate

from .escaping import one_line

WIDEST = 120
NARROWEST = 40
_GAP = 2  # blanks between two columns


def text_width() -> int:
    """The columns of the terminal, 120 at most; of a file or a pipe 120."""
    if not sys.stdout.isatty():
        return WIDEST
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def wrapped(text: str, width: int, start: str = "") -> list[str]:
    """A text as lines of at most `width`, each with `start` before it."""
    lines = textwrap.wrap(one_line(text), width - len(start), subsequent_indent="  ", break_on_hyphens=False) or [""]
    return [start + line for line in lines]


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table as text of at most `width`: one below another as many blocks as its columns need, each with all rows."""
    table = [[one_line(cell) for cell in line] for line in (columns, *rows)]
    longest = max(16, (width - _GAP) // 3)
    for line in table:
        line[1:] = [_broken(cell, longest) for cell in line[1:]]
    sizes = [max(_length(head) + tabulate.MIN_PADDING, *map(_length, column), 0) for head, *column in zip(*table)]
    first = min(sizes[0], width - _GAP - max(sizes[1:], default=-_GAP))
    for number, line in enumerate(table):
        line[0] = _broken(line[0], first - tabulate.MIN_PADDING * (number == 0))
    blocks: list[list[int]] = [[]]
    left = width - first
    for place, size in enumerate(sizes[1:], 1):
        if size + _GAP > left and blocks[-1]:
            blocks.append([])
            left = width - first
        blocks[-1].append(place)
        left -= size + _GAP
    return "\n\n".join(_block([[line[0], *(line[place] for place in block)] for line in table]) for block in blocks)


def _block(table: Sequence[Sequence[str]]) -> str:
    align = ("left", *["right"] * (len(table[0]) - 1))
    text = str(tabulate.tabulate(table[1:], table[0], tablefmt="simple", colalign=align, disable_numparse=True))
    return "\n".join(line.rstrip() for line in text.splitlines())


def _broken(cell: str, width: int) -> str:
    lines = textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
    return "\n".join(lines)


def _length(cell: str) -> int:
    return max(map(len, cell.split("\n")))
