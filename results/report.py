"""One self-contained HTML page of runs: tables, figures, images, settings, environment, and what is missing.

The page loads nothing and runs nothing: styles and figures are inside, and its content policy forbids scripts. All
text, whatever its source, goes through `escape`.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from .escaping import printable
from .figures import Plot
from .groups import column_of, row_of
from .rendering import Table
from .samples import Pair, Strip

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
BAD = ' class="bad"'
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 75rem; margin: 0 auto;
  padding: 1rem clamp(.5rem, 2vw, 1.5rem) 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem;
  border-bottom: 1px solid #ccc; } h3 { font-size: 1rem; margin-top: 1.8rem; }
nav a { margin-right: 1rem; display: inline-block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e2e2e2; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; } .strip figure { margin: 0; width: 6.5rem; font-size: .75rem; }
.strip img { max-width: 6rem; max-height: 6rem; border: 1px solid #e2e2e2; display: block; }
.wide td, .wide th { overflow-wrap: normal; }
.figure-of-one { font-size: 1.1rem; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .8rem; }
.notes { font-size: .85rem; color: #444; } .bad { color: #a33c00; }
details { margin: .3rem 0; } summary { cursor: pointer; }
@media (max-width: 45rem) { table { font-size: .8rem; } th, td { padding: .2rem .35rem; } }
@media print { details > * { display: block; } nav { display: none; } }
"""


@dataclass(frozen=True)
class Gap:
    """A run that is not finished."""

    folder: str
    reason: str  # what is there instead
    tail: Sequence[str] = ()  # the last lines of its log
    command: str = ""  # the line that makes it, where its log has one


@dataclass
class Content:
    """All that stands on a page."""

    title: str
    summary: Sequence[str]  # lines under the title
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    numbers: Sequence[str] = ()  # what a figure of a single point would show, as sentences
    remarks: Sequence[str] = ()  # why figures that could have been there are not
    strips: Sequence[Strip] = ()
    pairs: Sequence[Pair] = ()  # of confused classes
    runs: Sequence[tuple[str, Mapping[str, Any]]] = ()  # folder and record of each finished run
    configs: Sequence[tuple[str, str]] = ()  # name and text of each configuration
    gaps: Sequence[Gap] = ()
    missing: Sequence[str] = ()  # cells of the tables that no run fills, as sentences


def render(content: Content) -> str:
    """The page."""
    figures = [f"<figure>{inline_svg(plot, f'figure{n}')}</figure>\n" for n, plot in enumerate(content.plots)]
    configs = [
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>\n"
        for name, text in content.configs
    ]
    sections = {
        "Results": "".join(map(_result, content.tables)) or "<p>No finished run.</p>",
        "Figures": _numbers(content.numbers) + "".join(figures) + _lines(content.remarks),
        "Images": _images(content.strips),
        "Confusions": _pairs(content.pairs),
        "Missing": _gaps(content),
        "Runs": _runs(content.runs),
        "Environment": _environment(content.runs),
        "Settings": "".join(configs) or "<p>No run folder holds a config.yaml.</p>",
    }
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{title.lower()}"><h2>{title}</h2>{text}</section>\n' for title, text in sections.items()
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(content.title)}</h1>\n{_lines(content.summary)}<nav>{links}</nav>\n{body}</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """A text as HTML that shows it, control characters as escapes."""
    return html.escape(printable(text))


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """A table; all columns but the first `texts` are set to the right."""

    def cell(kind: str, place: int, value: object) -> str:
        number = ' class="number"' if place >= texts else ""
        scope = ' scope="col"' if kind == "th" else ""
        return f"<{kind}{scope}{number}>{escape(str(value))}</{kind}>"

    head = "".join(cell("th", place, name) for place, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(cell('td', place, value) for place, value in enumerate(row))}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def inline_svg(plot: Plot, prefix: str) -> str:
    """A figure as an `<svg>` element whose ids begin with `prefix`, which no other figure of the page has."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(plot.svg())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata":
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))
    root.set("role", "img")
    root.set("aria-label", printable(plot.caption))
    return ElementTree.tostring(root, encoding="unicode")


def _result(table: Table) -> str:
    body = html_table(table.columns, [[cell.replace("+/-", "±") for cell in row] for row in table.rows])
    return f"<h3>{escape(table.title)}</h3>\n{_lines(table.above)}{body}{_lines(table.below)}"


def _numbers(sentences: Sequence[str]) -> str:
    return "".join(f'<p class="figure-of-one">{escape(sentence)}</p>\n' for sentence in sentences)


def _images(strips: Sequence[Strip]) -> str:
    """Rows of thumbnails, each with what stands below it."""
    parts = []
    for strip in strips:
        pictures = "".join(
            f'<figure><img src="{escape(picture.link)}" alt="{escape(picture.caption)}">'
            f"<figcaption{BAD if picture.wrong else ''}>{escape(picture.caption)}</figcaption></figure>"
            for picture in strip.pictures
        )
        note = _lines([strip.note] if strip.note else [])
        parts.append(f'<h3>{escape(strip.title)}</h3>\n{note}<div class="strip">{pictures}</div>\n')
    return "".join(parts) or "<p>No run has saved predictions, which name its images.</p>"


def _pairs(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "<p>None: no run has saved predictions, or all of them are right.</p>"
    rows = [(p.method, p.label, p.answer, p.count, f"{100 * p.count / p.total:.0f} % of {p.total}") for p in pairs]
    return html_table(("method", "class", "taken for", "images", "of the class"), rows, texts=3)


def _gaps(content: Content) -> str:
    if not content.gaps and not content.missing:
        return "<p>Nothing: every cell of the tables is filled, and every run folder holds a finished run.</p>"
    parts = [_lines(content.missing)]
    for gap in content.gaps:
        tail = f"<pre>{escape(chr(10).join(gap.tail))}</pre>" if gap.tail else ""
        command = f"<p>To run it:</p><pre>{escape(gap.command)}</pre>" if gap.command else ""
        parts.append(
            f'<details><summary><span class="bad">{escape(gap.reason)}</span>: {escape(gap.folder)}</summary>'
            f"{tail}{command}</details>\n"
        )
    return "".join(parts)


def _runs(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    columns = ("method", "task", "target", "accuracy (%)", "seed", "shots", "images", "training (s)", "memory (MiB)",
               "device", "finished (UTC)", "folder")  # fmt: skip
    rows = []
    for folder, record in runs:
        split = "test" if "test" in record["metrics"] else next(iter(record["metrics"]))
        metrics = record["metrics"][split]
        rows.append((
            row_of(record).label, record["task"] or "by hand", column_of(record),
            f"{metrics['accuracy']:.1f}" + ("" if split == "test" else f" ({split})"), record["seed"],
            record["shots"] if record["shots"] > 0 else "all", metrics["total"],
            f"{record['seconds']['train']:.1f}", f"{record['peak_memory_mb']:,.0f}", record["device"],
            record["finished_at"].split("+")[0].replace("T", " "), folder,
        ))  # fmt: skip
    return html_table(columns, rows, texts=3)


def _environment(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Each fact once if all runs share it, otherwise each value with the number of runs that have it."""
    facts: dict[str, Counter[str]] = {}
    for _, record in runs:
        toolbox = record["toolbox"]
        own = {
            "toolbox": f"{toolbox.get('kind', '')} {toolbox.get('version', '')}".strip(),
            **{f"version of {name}": version for name, version in record["versions"].items()},
            "git revision": record["git_revision"],
            "device": record["device"],
            "precision": record["precision"],
            "backbone": record["backbone"]["name"],
            "weights": record["backbone"]["weights_hash"],
        }
        for name, value in own.items():
            facts.setdefault(name, Counter())[str(value)] += 1
    rows = []
    for name, values in facts.items():
        texts = [value or "none" for value in values]
        if len(values) > 1 or sum(values.values()) < len(runs):
            texts = [f"{value} ({count} runs)" for value, count in zip(texts, values.values())]
        rows.append((name, "; ".join(texts)))
    return html_table(("fact", "value"), rows, texts=2)


def _lines(lines: Sequence[str]) -> str:
    return f'<p class="notes">{"<br>".join(map(escape, lines))}</p>\n' if lines else ""
