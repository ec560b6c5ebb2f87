"""Names from outside in tables, sheets, pages, figures and CSV files (row 8.7).

Covered: every style of a table read back by a small parser of that style; HTML and SVG that parse and show the name;
formulas and numbers in CSV; characters that steer a terminal.
"""

import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from dassl_clip.results import plots, rendering, report, tables
from dassl_clip.results import published as sheets
from dassl_clip.results.escaping import csv_text, markdown, one_line, printable

from .test_plots import record

NAMES = ["a|b", "<b>bold</b><script>", "`code`", "two\nlines", "*x* _y_ ~~z~~", "[a](http://b)", "&lt;", "=cmd()",
         "back\\slash", "a_b & 5% $x$ {}", "\x1b[31mred", "\u202eright", "![i](http://j)", "@SUM(A1)",
         "-1+1|'x'!A1"]  # fmt: skip


def table_of(name):
    value = rendering.Value("-2.5", (-2.5,), (1,))
    return tables.Table(f"title {name}", [f"above {name}"], ["accuracy (%)", name], [[name, value]], [f"below {name}"])


def unmarked(text):
    """What Markdown shows for a text without markup."""
    return unescape(re.sub(r"\\([\\|`*_~(])", r"\1", text))


@pytest.mark.parametrize("name", NAMES)
def test_8_7_markdown_shows_the_name(name):
    lines = table_of(name).render("markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3 and len(lines) == 9  # title, above, three rows, below, and what separates them
    for row in (rows[0], rows[2]):
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
        assert len(cells) == 4 and one_line(name) in [unmarked(cell.strip()) for cell in cells[1:3]]
    told = "\n".join(lines)
    assert not re.search(r"<|(?<!\\)`|\]\(", told)
    assert unmarked(lines[0][2:-2]) == f"title {one_line(name)}"


def test_8_7_markup_that_means_nothing_stays_readable():
    assert markdown("art_painting, 3 < 4 & 5: a photo of a {}. [CoOp (icons)]") == (
        "art_painting, 3 &lt; 4 & 5: a photo of a {}. [CoOp (icons)]"
    )


@pytest.mark.parametrize("style", ["text", "latex"])
@pytest.mark.parametrize("name", NAMES)
def test_8_7_no_name_breaks_out_of_its_line(style, name):
    plain = len(table_of("x").render(style).splitlines())
    lines = table_of(name).render(style).splitlines()
    assert len(lines) == plain
    if style == "latex":
        body = [line for line in lines if not line.startswith("%")]
        assert not re.search(r"(?<!\\)[%#_]|(?<!\\)&.*(?<!\\)&", "\n".join(body))
        assert all(line.startswith(("%", "\\", " ")) or line.endswith("\\\\") for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_8_7_csv_holds_no_formula(name):
    (row,) = csv.DictReader(io.StringIO(table_of(name).render("csv")))
    assert row["mean"] == "-2.5" and row["column"] == row["row"] and row["row"] in (name, f"'{name}")
    assert row["table"] == f"title {name}" and not re.match(r"[=+\-@\t\r].", row["row"])
    cell = sheets.Cell(got={1: 50.0}, published=51.0)
    sheet = sheets.Sheet("t", [], {(name, "test"): {(name, name): cell}}, {name: [name]}, 1, 1.0, [])
    (line,) = csv.DictReader(io.StringIO(sheet.render("csv")))
    assert line["method"] == row["row"] == line["data"] == line["column"] and line["difference"] == "-1.0"
    (table,) = json.loads(table_of(name).render("json"))
    assert (table["cells"][0]["row"], table["cells"][0]["column"], table["title"]) == (name, name, f"title {name}")


def test_8_7_numbers_of_tables_are_no_formulas():
    cells = ["+0.5", "-1.0 +/- 0.2 (n=2)", "-", "+1e-05", "", 3, -2.5]
    assert next(csv.reader(io.StringIO(csv_text([cells])))) == [str(cell) for cell in cells]
    assert csv_text([["-1+1", "+x", "=1", "\tx"]]) == "'-1+1,'+x,'=1,'\tx\n"


class Texts(HTMLParser):
    """The texts and tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_8_7_pages_and_figures_show_the_names():
    found = [record(method=name, dataset=NAMES[k % 6]) for k, name in enumerate(NAMES)]
    plot = plots.domains_plot(found)
    ElementTree.fromstring(plot.svg())
    for run, name in zip(found, NAMES):
        run |= {"device": name, "versions": {name: name}}
    runs = [(run["method"], run) for run in found]
    made = [table_of(name) for name in NAMES]
    page = report.render(report.Content(NAMES[0], NAMES, made, [plot], remarks=NAMES, runs=runs))
    assert page == printable(page)
    shown = Texts(page)
    texts = "".join(shown.texts)
    assert all(printable(name) in texts for name in NAMES) and not {"script", "b", "i"} & shown.tags
