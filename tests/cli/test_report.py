"""`dassl-clip report`: one page of runs, whole, escaped, and read by a real browser.

Covered: figures of the tables and of their records on the page; gains; readings; what is missing, broken or unfinished
with the last lines of its log and its command; configurations and versions; hostile names as text; nothing loaded from
elsewhere; ids that several figures may not share; no matplotlib; refusals. In headless Chromium, where there is one:
nothing runs, nothing overflows, every figure is drawn, the table's cells are what they should be.
"""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from dassl_clip.cli import report

from .conftest import write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = '<img src=x onerror=document.title="owned">&"\'$'
CLASSES = ["cat", "</td></svg><script>document.title='owned'</script>", "a & b"]
VOID = {"meta", "br", "img", "link", "input", "hr"}


def metrics(accuracy, **readings):
    return {
        name: {"accuracy": value, "error_rate": 100 - value, "total": 20, "correct": 3}
        for name, value in {"test": accuracy, **readings}.items()
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Folder and page of runs of two methods; one cell is missing, one run is broken, one was not finished."""
    root = tmp_path_factory.mktemp("world") / "all & <b>runs"
    for method, gain in {"ZeroshotCLIP": 0, "CoOp": 5}.items():
        for place, domain in enumerate(("photo", HOSTILE)):
            for seed in (1, 2):
                if (method, domain, seed) != ("CoOp", "photo", 2):
                    found = metrics(40 + 10 * place + gain * seed, **{"4-shot": 60.0, "C": 41.0})
                    folder = write_run(
                        root / method / HOSTILE / f"{place}-{seed}", CLASSES, method=method, seed=seed, metrics=found,
                        target_domains=[domain],
                    )  # fmt: skip
                    (folder / "config.yaml").write_text(f"OPTIM:\n  LR: 0.1\nNAME: {json.dumps(HOSTILE)}\n")
    (root / "torn").mkdir()
    (root / "torn" / "record.json").write_text('{"schema_version": 1')
    halfway = root / f"halfway {HOSTILE}"
    halfway.mkdir()
    (halfway / "config.yaml").write_text("A: 1\n")
    (halfway / "log.txt").write_text(f"hello\nCommand: python train.py --target {HOSTILE}\nRuntimeError: {HOSTILE}\n")
    assert report.main([str(root), "--reference", "ZeroshotCLIP"]) == 0
    return root, root / "report.html"


class Page(HTMLParser):
    """Tags, attributes, text and table cells of a page; fails where tags do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.stack, self.rows, self.texts = [], [], [], [], []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.stack and self.stack[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page[1].read_text(encoding="utf-8"))


def test_the_tables_hold_means_spreads_and_gains(parsed):
    assert ["ZeroshotCLIP (vit)", "50.0 ± 0.0", "40.0 ± 0.0", "45.0 ± 0.0"] in parsed.rows
    assert ["CoOp (vit)", "57.5 ± 3.5", "45.0 (n=1)", "50.0 (n=1)"] in parsed.rows
    assert ["gain of CoOp (vit)", "+7.5 ± 3.5", "+5.0 (n=1)", "+5.0 (n=1)"] in parsed.rows
    assert ["4-shot: CoOp (vit)", "60.0 ± 0.0", "60.0 (n=1)", "60.0 (n=1)"] in parsed.rows
    assert ["accuracy (%)", HOSTILE, "photo", "mean"] in parsed.rows


def test_every_run_has_a_line(parsed):
    lines = [row for row in parsed.rows if row[0].startswith(("CoOp", "Zero")) and len(row) == 12 and row[1] == "lodo"]
    assert len(lines) == 7
    assert ["CoOp (vit)", "lodo", HOSTILE, "60.0", "2", "16", "20", "12.5", "1,234", "cpu", "2024-01-01 00:00:00",
            f"CoOp/{HOSTILE}/1-2"] in lines  # fmt: skip


def test_confused_classes_and_images_that_are_gone(parsed):
    for method, runs in {"CoOp (vit), PACS, task lodo": 3, "ZeroshotCLIP (vit), PACS, task lodo": 4}.items():
        wrong = {}  # of the nine images of each finished run, as `write_run` makes them
        for k in range(9):
            pair = CLASSES[k % 3], CLASSES[k // 2 % 3]
            wrong[pair] = wrong.get(pair, 0) + (pair[0] != pair[1])
        rows = [row for row in parsed.rows if row[0] == method and len(row) == 5]
        assert len(rows) == len([count for count in wrong.values() if count])
        for _, label, answer, count, share in rows:
            assert int(count) == runs * wrong[label, answer]
            assert share == f"{100 * wrong[label, answer] / 3:.0f} % of {3 * runs}"
    assert "6 of 6 images cannot be shown: no image at a" in parsed.texts


def test_what_is_missing_stands_there(parsed):
    text = "\n".join(parsed.texts)
    assert "missing: CoOp (vit): photo (seed 2)" in text
    assert re.search(r"broken: record.json cannot be read .*\n: torn", text)
    assert f"not finished\n: halfway {HOSTILE}" in text and f"RuntimeError: {HOSTILE}" in text
    assert f"python train.py --target {HOSTILE}" in text and "7 finished runs, 2 unfinished or broken" in text


def test_settings_and_environment(parsed):
    text = "".join(parsed.texts)
    assert f"NAME: {json.dumps(HOSTILE)}" in text and "# python train.py --seed 1" in text
    assert ["version of torch", "2.9.1"] in parsed.rows and ["weights", "ab" * 32] in parsed.rows


def test_hostile_names_are_text(parsed):
    assert not {"script", "img", "b", "iframe", "object", "link"} & set(parsed.tags)
    assert not [key for key, _ in parsed.attributes if key.startswith("on")]
    text = "".join(parsed.texts)
    assert "Runs in all & <b>runs" in text and HOSTILE in text and CLASSES[1][:15] in text


def test_nothing_is_loaded_from_elsewhere(page, parsed):
    links = [value for key, value in parsed.attributes if key in ("href", "src", "xlink:href", "action", "data")]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    style = page[1].read_text(encoding="utf-8")
    assert "@import" not in style and not re.search(r"url\((?!#figure)", style)


def test_ids_are_unique_and_found(parsed):
    ids = [value for key, value in parsed.attributes if key == "id"]
    assert len(ids) == len(set(ids)) and len([name for name in ids if name.startswith("figure")]) > 20
    links = [value for key, value in parsed.attributes if key in ("href", "xlink:href")]
    targets = [link[1:] for link in links if not link.startswith("data:")]
    targets += re.findall(r"url\(#([^)]+)\)", " ".join(value or "" for _, value in parsed.attributes))
    assert set(targets) <= set(ids)


def test_the_figures_are_those_that_there_is_data_for(parsed):
    labels = [value for key, value in parsed.attributes if key == "aria-label"]
    starts = ("Accuracy by target domain", "The loss", "Confusion matrix", "Confusion matrix")
    assert len(labels) == 4 and all(label.startswith(start) for label, start in zip(labels, starts))
    assert parsed.tags.count("svg") == 4 and "shots: no method was measured" in "".join(parsed.texts)


def test_one_run_alone_and_another_place(page, tmp_path, capsys):
    root, _ = page
    run = next(root.glob("CoOp/*/0-1"))
    assert report.main([str(run), "--out", str(tmp_path / "one.html"), "--title", "Mine", "--no-plots"]) == 0
    found = Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "svg" not in found.tags and "Mine" in found.texts and found.rows[1][:2] == ["CoOp (vit)", "45.0"]
    assert f"{tmp_path / 'one.html'}: 1 finished run, 2 tables, 0 figures" in capsys.readouterr().out


def test_a_chart_of_one_point_is_a_number(page, tmp_path):
    run = next(page[0].glob("CoOp/*/0-1"))
    record = json.loads((run / "record.json").read_text())
    record["history"] = record["history"][:1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert report.main([str(tmp_path), "--out", str(tmp_path / "one.html")]) == 0
    found = Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "svg" not in found.tags
    (number,) = [text for text in found.texts if text.startswith("Accuracy by target domain on test images.")]
    assert "45" in number.split()[-1]
    (number,) = [text for text in found.texts if text.startswith("The loss (a weighted sum)")]
    assert number.endswith("loss: 2; learning rate: 0.1")


def test_without_matplotlib_the_page_says_so(page, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(page[0]), "--out", str(tmp_path / "page.html")]) == 0
    assert "pip install 'dassl-clip[plots]'" in capsys.readouterr().err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" not in text and "dassl-clip[plots]" in text and "57.5 ± 3.5" in text


def test_refusals(page, tmp_path, capsys):
    for words, expected in (
        ([str(tmp_path)], "there is no run at or below"),
        ([str(tmp_path / "x")], "no folder"),
        ([str(page[0]), "--reference", "CoOpp"], "Did you mean 'CoOp'?"),
    ):
        assert report.main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and expected in told


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Opens a page in headless Chromium and gives back the document as the browser has it."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    profile = tmp_path_factory.mktemp("profile")

    def open_page(path, *flags):
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        words += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", *flags, path.as_uri()]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout

    return open_page


def test_a_browser_shows_the_page(page, browser):
    shown = Page(browser(page[1], "--dump-dom"))
    assert ["CoOp (vit)", "57.5 ± 3.5", "45.0 (n=1)", "50.0 (n=1)"] in shown.rows
    assert shown.tags.count("svg") == 4 and "script" not in shown.tags
    assert "owned" not in shown.texts[shown.texts.index("Runs in all & <b>runs")]


MEASURE = """<script>
const boxes = [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect());
document.title = JSON.stringify({
  before: document.title,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  sizes: boxes.map(b => [b.width, b.height]),
  texts: [...document.querySelectorAll('figure svg text')].filter(t => t.getBBox().width > 0).length,
  outside: [...document.querySelectorAll('figure svg')].map(s => [...s.querySelectorAll('text')].filter(t => {
    const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();
    return a.right > b.right + 2 || a.left < b.left - 2 || a.bottom > b.bottom + 2; }).length),
  headings: [...document.querySelectorAll('h2')].map(h => h.textContent),
});
</script>"""


@pytest.mark.parametrize("width", [1280, 600, 380])
def test_the_layout_holds(page, browser, tmp_path, width):
    text = page[1].read_text(encoding="utf-8")
    probe = tmp_path / "probe.html"
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    probe.write_text(without_policy.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    dom = browser(probe, "--dump-dom", f"--window-size={width},900")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1].replace("&amp;", "&").replace("&lt;", "<")
    found = json.loads(title.replace("&gt;", ">"))
    assert found["before"] == "Runs in all & <b>runs"  # no hostile name has run, though the policy was taken away
    assert found["overflow"] <= 0 and found["headings"] == [
        "Results", "Figures", "Images", "Confusions", "Missing", "Runs", "Environment", "Settings",
    ]  # fmt: skip
    assert len(found["sizes"]) == 4 and all(w > 300 and h > 150 for w, h in found["sizes"])
    assert found["texts"] > 80 and found["outside"] == [0, 0, 0, 0]


def test_the_policy_stops_scripts(page, browser, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(page[1].read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    assert "<title>Runs in all &amp; &lt;b&gt;runs</title>" in browser(probe, "--dump-dom")
