"""How tables are printed: short names and legend, widths, numbers in CSV and JSON, LaTeX with its best cells.

Covers `results/row_names.py`, `results/layout.py`, `results/rendering.py`, `relabelled` and `legend`. What is printed
is read back: numbers from CSV and JSON against the records, blocks against the whole table.
"""

import csv
import io
import json
import re
import shlex
import statistics

import pytest

from dassl_clip.results import tables
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import group_records, relabelled
from dassl_clip.results.layout import text_table, wrapped
from dassl_clip.results.rendering import Value, places, render_tables
from dassl_clip.results.row_names import short_config

from .conftest import DOMAINS, make_record

PATH = "/a/deep/place/of/my own/pretraining/run_2026/x.safetensors"
SAFE = re.sub(r"[^A-Za-z0-9.,_-]", "_", PATH)
OWN = f"vit+MODEL.BACKBONE.NAME=IconsCLIP+MODEL.BACKBONE.WEIGHTS={SAFE}"


def trained(method="CoOp", keys=(), accuracy=50.0, domain="art", seed=1, **changes):
    """A record with keys that were changed on its command line."""
    config = "".join(f"+{key}={re.sub(r'[^A-Za-z0-9.,_-]', '_', value)}" for key, value in keys)
    command = shlex.join(["python", "train.py", "--seed", "1", *(word for pair in keys for word in pair)])
    changes = {"config": f"vit{config}", "command": command} | changes
    return make_record(method, domain, seed, accuracy, **changes)


@pytest.mark.parametrize(
    ("config", "short"),
    [
        ("vit", "vit"),
        ("", ""),
        ("vit+OPTIM.LR=0.2+ALPHA=3", "vit, LR=0.2, ALPHA=3"),
        (OWN, "vit, weights 1a2b"),
        (f"{OWN} + icons+MODEL.BACKBONE.WEIGHTS={SAFE}", "vit + icons, weights 1a2b"),
        ("+OPTIM.LR=0.2", "LR=0.2"),
        ("a+b.c", "a+b.c"),
    ],
)
def test_short_names_hold_no_path_and_no_whole_key(config, short):
    assert short_config(config, "weights 1a2b") == short


def test_long_values_and_many_keys_become_hashes_that_differ():
    one, other = (short_config(f"vit+TEMPLATES=a_{'long_' * 5}{end}", "") for end in "xy")
    assert one != other and re.fullmatch(r"vit, TEMPLATES [0-9a-f]{6}", one)
    many, more = ("vit" + "".join(f"+OPTIM.KEY{n}=1000{end}" for n in range(6)) for end in "xy")
    assert short_config(many, "") != short_config(more, "")
    assert re.fullmatch(r"vit, 6 keys [0-9a-f]{6}", short_config(many, ""))


def test_rows_that_one_short_name_fits_are_told_apart():
    keys = [("INPUT.SIZE", "9")], [("OPTIM.SIZE", "9")]
    (group,) = group_records([trained(keys=own) for own in keys])
    labels = [row.label for row in group.rows]
    assert len(set(labels)) == 2 and all(re.fullmatch(r"CoOp \(vit, SIZE=9\) \[[0-9a-f]{6}\]", text) for text in labels)
    assert tables.legend(group, group.rows) == [f"{labels[0]}: INPUT.SIZE 9", f"{labels[1]}: OPTIM.SIZE 9"]


def test_the_legend_has_the_keys_as_they_were_given_and_what_all_rows_share_once():
    weights = ("MODEL.BACKBONE.WEIGHTS", PATH)
    runs = [trained("CoOp", [weights]), trained("GOPro", [weights, ("OPTIM.LR", "0.2")])]
    runs[1]["command"] = runs[1]["command"].replace("OPTIM.LR 0.2", "OPTIM.LR=0.2")
    (group,) = group_records(runs)
    table = tables.method_table(group)
    assert [row[0] for row in table.rows] == ["CoOp (vit, weights 01234567)", "GOPro (vit, weights 01234567, LR=0.2)"]
    assert table.below == [
        f"all rows: MODEL.BACKBONE.WEIGHTS {PATH}",
        "GOPro (vit, weights 01234567, LR=0.2): OPTIM.LR 0.2",
    ]
    assert tables.method_table(group_records([trained()])[0]).below == []


def test_a_key_that_a_run_and_the_run_it_refines_both_have_is_told_twice():
    base = {"method": "CLAP", "config": "vit+GAMMA=0.1", "folder": "", "data": {}}
    run = make_record("InMaP", config="vit+GAMMA=0.5", refines=base, command="train.py TRAINER.INMAP.GAMMA 0.50")
    (group,) = group_records([run])
    assert [row.label for row in group.rows] == ["CLAP + InMaP (vit + vit, GAMMA=0.1, GAMMA=0.5)"]
    (line,) = tables.legend(group, group.rows)
    assert line.endswith("): TRAINER.CLAP.GAMMA 0.1, TRAINER.INMAP.GAMMA 0.50")


def test_keys_that_a_name_was_too_long_for_stand_in_the_legend():
    run = trained(keys=[("OPTIM.LR", "0.2"), ("OPTIM.NAME", "adam")], config="vit+OPTIM.LR=0.2+OPT-0123abcd")
    (group,) = group_records([run])
    assert group.rows[0].label.startswith("CoOp (vit, LR ")
    assert tables.legend(group, group.rows) == [f"{group.rows[0].label}: OPTIM.LR 0.2, OPTIM.NAME adam"]


def test_labels_name_rows_and_weights():
    runs = [trained("CoOp", [("MODEL.BACKBONE.WEIGHTS", PATH)]), trained("GOPro"), trained("CLAP")]
    groups = group_records(runs)

    def labels(*words):
        return [row.label for group in relabelled(groups, words) for row in group.rows]

    assert labels() == ["CLAP (vit)", "CoOp (vit, weights 01234567)", "GOPro (vit)"]
    assert labels("*/x.safetensors=ours", "GOPro (*)=mine") == ["CLAP (vit)", "CoOp (vit, ours)", "mine"]
    assert labels("01234567=ours", "CLAP=A") == ["A", "CoOp (vit, ours)", "GOPro (vit)"]
    (group,) = relabelled(groups, ["GOPro*=mine"])
    table = tables.method_table(group, reference="CLAP")
    assert "gain of mine" in [row[0] for row in table.rows] and "mine: GOPro (vit)" in table.below
    for words, told in (
        (["x"], "--label x: expected PATTERN=NAME"),
        (["GOPr=x"], "no row and no weights are called 'GOPr'. The rows are: CLAP (vit), CoOp (vit, w"),
        (["*=x"], "CoOp (vit, weights 01234567) and GOPro (vit) would both be called 'x'"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            relabelled(groups, words)


# ------------------------------------------------------------------------------------------------------------- widths


@pytest.mark.parametrize("width", [40, 61, 80, 120])
def test_no_line_is_wider_and_every_cell_is_there(width):
    columns = ["accuracy (%)", *(f"domain_{n}" for n in range(9)), "a domain of a very long name " * 3]
    rows = [[f"Method {m} (a_config, KEY=1000, weights 01234567)", *(f"{m}{n}.5 +/- 0.1" for n in range(10))]
            for m in range(1, 4)]  # fmt: skip
    text = text_table(columns, rows, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for row in rows:
        assert all(words.count(cell) == 1 for cell in row[1:])
    heads = [block.splitlines()[0].split()[2:] for block in text_table(columns[:10], rows, 120).split("\n\n")]
    assert [name for head in heads for name in head] == columns[1:10] and len(heads) == 2


@pytest.mark.parametrize("width", [40, 77, 120])
def test_long_lines_are_wrapped(width):
    for start in ("", "% "):
        lines = wrapped(f"a caution: {'that is long ' * 30}{'x' * 200}", width, start)
        assert width - 13 < max(map(len, lines[:-1])) <= width and all(line.startswith(start) for line in lines)
        text = " ".join(" ".join(line.removeprefix(start) for line in lines).split())
        assert text.count("that is long") == 30 and text.count("x") == 200


def test_a_terminal_of_80_columns_and_a_pipe(monkeypatch):
    (group,) = group_records([trained(domain=domain, seed=s) for domain in DOMAINS for s in (1, 2)])
    table = tables.method_table(group)
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, table.render().splitlines())) > 80  # a pipe, whatever the terminal is
    monkeypatch.setattr("sys.stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    assert 40 < max(map(len, table.render().splitlines())) <= 50
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, table.render().splitlines())) <= 120


# ----------------------------------------------------------------------------------------------------------- programs


def two_tables():
    """A method with three seeds, one of which lacks a domain, and another one; for two tasks."""
    values = {("CoOp", d, s): 40 + 7.3 * s + len(d) for d in DOMAINS for s in (1, 2, 3)}
    values |= {("GOPro", d, 1): 61.7 + len(d) for d in DOMAINS}
    del values["CoOp", "photo", 3]
    made = []
    for task in ("lodo", "fewshot"):
        (group,) = group_records([make_record(*key, value, task=task) for key, value in values.items()])
        made.append(tables.method_table(group, "CoOp"))
    return values, made


def test_csv_and_json_hold_numbers():
    values, made = two_tables()
    lines = list(csv.DictReader(io.StringIO(render_tables(made, "csv"))))
    assert [line["task"] for line in lines] == ["lodo"] * 15 + ["fewshot"] * 15
    cells = [cell for table in json.loads(render_tables(made, "json")) for cell in table["cells"]]
    assert [table["facts"]["task"] for table in json.loads(render_tables(made, "json"))] == ["lodo", "fewshot"]
    for line, cell in zip(lines, cells, strict=True):
        method, column = line["row"].removeprefix("gain of ").split()[0], line["column"]
        known = {s: v for (m, d, s), v in values.items() if (m, d) == (method, column)}
        if column == "mean":
            whole = [s for s in (1, 2, 3) if all((method, d, s) in values for d in DOMAINS)]
            known = {s: statistics.fmean(values[method, d, s] for d in DOMAINS) for s in whole}
        if line["row"].startswith("gain of "):
            base = statistics.fmean(values["CoOp", d, 1] for d in DOMAINS)
            known = {1: known[1] - (base if column == "mean" else values["CoOp", column, 1])}
        mean, std = statistics.fmean(known.values()), statistics.stdev(known.values()) if len(known) > 1 else None
        assert (cell["row"], cell["column"]) == (line["row"], column)
        assert (cell["mean"], cell["std"]) == (pytest.approx(mean), std and pytest.approx(std))
        assert (cell["n"], cell["seeds"]) == (len(known), list(known))
        assert float(line["mean"]) == cell["mean"] and line["std"] == ("" if std is None else str(cell["std"]))
        assert line["n"] == str(len(known)) and line["seeds"] == " ".join(map(str, known))


def test_dropped_headers_leave_title_cells_and_legend():
    (group,) = group_records([trained(keys=[("OPTIM.LR", "0.2")])])
    table = tables.method_table(group)
    for style, line in (("text", "CoOp (vit, LR=0.2): OPTIM.LR 0.2"), ("latex", "% CoOp (vit, LR=0.2): OPTIM.LR 0.2")):
        whole, short = (table.render(style, header).splitlines() for header in (True, False))
        assert any("protocol" in text for text in whole) and not any("protocol" in text for text in short)
        assert line in short and set(short) < set(whole) and whole[0] == short[0]
    assert "about" not in json.loads(table.render("json", header=False))[0]


# -------------------------------------------------------------------------------------------------------------- LaTeX


def test_best_and_second_by_the_numbers_as_printed():
    rows = [["a", 61.24, 3.0], ["b", 61.16, 2.0], ["c", 60.0, None], ["d", 59.0, 1.0], ["gain", 9.0, 9.0]]
    cells = [[row[0], *(Value("-") if x is None else Value(f"{x:.1f}", (x,), (1,)) for x in row[1:])] for row in rows]
    best, second = "textbf", "underline"
    assert places(cells, [(range(4), True)]) == {
        (0, 1): best, (1, 1): best, (2, 1): second, (0, 2): best, (1, 2): second,
    }  # fmt: skip
    assert places(cells, [(range(4), False)]) == {(3, 1): best, (2, 1): second, (3, 2): best, (1, 2): second}
    assert places(cells, [(range(1), True)]) == {}  # nothing to be better than


def test_latex_is_a_table_for_booktabs():
    _, made = two_tables()
    text = render_tables([*made, made[0]], "latex")
    assert re.findall(r"\\label\{(.*)\}", text) == [
        "tab:pacs-task-lodo-test-images-accuracy",
        "tab:pacs-task-fewshot-test-images-accuracy",
        "tab:pacs-task-lodo-test-images-accuracy-2",
    ]
    first = text[text.index("\\begin{table}") : text.index("\\end{table}")]
    for part in (
        "\\caption{PACS, task lodo, test images: accuracy (\\%). "
        "Cells: mean $\\pm$ sample standard deviation over seeds. Best in bold, second underlined.}",
        "\\begin{tabular}{lrrrrr}\n\\toprule\naccuracy (\\%) & art & cartoon & photo & sketch & mean \\\\\n\\midrule",
        "\\bottomrule\n\\end{tabular}",
    ):
        assert part in first, part
    coop, gopro, gain = (line for line in first.splitlines() if line.endswith("\\\\") and "vit" in line)
    assert coop.count("\\underline{") == gopro.count("\\textbf{") == 5 and "\\textbf" not in gain + coop
    assert "\\underline{57.6 $\\pm$ 7.3}" in coop and "photo & sketch" in first and "(n=2)" in coop
