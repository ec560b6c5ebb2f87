"""Names from outside, in what shows them: they steer no terminal, break no table, and are no formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

# Control characters but for tab and line feed, marks that turn the direction of text, undecodable bytes.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BREAK = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")
_MARKDOWN = re.compile(r"[\\|`<>*]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=\])(?=\()")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}",  # the last two mean something after a row
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( \+/- [\d.]+)?( \(n=\d+\))?")
_FORMULA = re.compile("[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20].", re.S)


def printable(text: str) -> str:
    """A text in which control characters and bytes that are no text are written out as escapes.

    Names of files and classes come from untrusted files: none of them shall steer a terminal or fail to be printed.
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A text without line breaks."""
    return _BREAK.sub(" ", text)


def markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is, in a cell of a table too: no markup, links or HTML."""
    return _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), one_line(text))


def latex(text: str) -> str:
    """A text on one line that LaTeX sets as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe there."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_no_formula(value) if isinstance(value, str) else value for value in row] for row in rows)
    return buffer.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
