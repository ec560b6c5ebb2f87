"""The pages of `docs/` and the README against the program.

Covers: every command in a bash block, and every `dassl-clip` or `train.py` command in the text, is taken by the real
parsers, with config keys, files, trainers and data sets that exist; tasks, comparisons and sweeps can be planned, and
so can the sweep files that are shown; blocks marked with `<!-- run -->` are run from top to bottom, with the page's own
code; each method and task has its section or row; quoted messages are in the source; the index links to every page.
"""

import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import study
from build_icons.__main__ import parser as build_parser
from PIL import Image
from torch.distributed.run import get_args_parser

from dassl_clip.cli import compare, completion, sweep, task
from dassl_clip.cli.arguments import split_pairs
from dassl_clip.engine import catalogue, config, registry
from dassl_clip.experiments import locks, plan
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.experiments.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *DOCS]
PLANNERS = {"task": task, "compare": compare, "sweep": sweep}
registry.register()
KEYS = set(config.known_keys(config.default_config()))
PARSERS = {}
for command, parser in completion.subparsers(completion.whole_parser()):
    PARSERS |= {command: parser} | {f"{command} {name}": inner for name, inner in completion.subparsers(parser)}
OF_THE_CHECKOUT = ("train.py", "configs/", "embedded/")


def blocks(page):
    """Language, mark and text of each fenced block; the mark is what an HTML comment on the line before says."""
    pattern = r"(?:^<!-- (run[^\n]*) -->\n)?^```(\w*)\n(.*?)^```$"
    return [(m[2], m[1] or "", m[3]) for m in re.finditer(pattern, page.read_text(encoding="utf-8"), re.M | re.S)]


def split_lines(text):
    """The commands of a shell text as lists of words, with continued lines joined and comments left out."""
    lines = re.split(r"\n| && ", text.replace("\\\n", " "))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(page):
    """Commands in the running text, without the parts that stand for something else."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for quoted in re.findall(r"`((?:dassl-clip|python train\.py|TASK|bash scripts)[^`]* [^`]*)`", text):
        plain = re.sub(r"\[[^\]]*\]|\.\.\.|\bKEY VALUE\b", " ", " ".join(quoted.split()))
        yield shlex.split(plain)


def as_cli(words):
    """A command as arguments of `dassl-clip`, or None for one of another program (which is checked here)."""
    count = next(i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word))
    settings, words = dict(word.split("=", 1) for word in words[:count]), words[count:]
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "dassl-clip":
        return words[1:]
    if words[0] in ("srun", "torchrun"):  # its own flags, then what it starts
        words = words[words.index("torchrun") :]
        args = get_args_parser().parse_args(words[1:])
        return as_cli(["python", args.training_script, *args.training_script_args])
    if words[0] == "python" and words[1] == "train.py":
        return ["train", *words[2:]]
    if words[0] == "bash":
        script = ROOT / words[1]
        assert script.is_file(), script
        (method,) = re.findall(r"^exec .* (\w+) \"\w*\" \"\$@\"$", script.read_text(), re.M)
        shared = (ROOT / "scripts" / "task.sh").read_text()
        assert all(re.search(rf"^  {name} ", shared, re.M) for name in settings), settings
        flags = {"TASK": "--task", "DATA": "--data", "OUT": "--out", "CFG": "--config", "SHOTS": "--shots"}
        options = [part for name, value in settings.items() for part in (flags[name], *value.split())]
        return ["task", method, *words[2:4], *options, *words[4:]]
    if words[:3] == ["python", "-m", "tools.build_icons"]:
        build_parser().parse_args([word for word in words[3:] if word != "FOLDER"] or ["measure"])
    elif words[:3] == ["python", "-m", "tools.study"]:
        study.parser().parse_args(words[3:] or ["show"])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words
    elif words[0] == "pip":
        folders = [word.partition("[")[0] for word in words[2:] if word.startswith(".")]
        assert words[1] == "install" and all((ROOT / folder).is_dir() for folder in folders), words
    elif words[0] == "eval":
        assert split_lines(words[1].removeprefix("$(").removesuffix(")"))[0][:2] == ["dassl-clip", "completion"]
    else:
        assert words[0] in ("git", "cd", "pytest", "ruff", "mypy", "pre-commit"), words
    return None


def check(words, page):
    """Let the parsers take one command; what it names has to exist."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in PARSERS else words[0]
    assert name in PARSERS, words
    parser = PARSERS[name]
    flags, pairs = split_pairs(words[len(name.split()) :], parser.single_value_flags())
    args = parser.parse_args(flags)
    assert set(pairs[::2]) <= KEYS, words
    text = page.read_text(encoding="utf-8")
    for key in ("config_file", "dataset_config_file"):
        if getattr(args, key, None):
            assert (ROOT / getattr(args, key)).is_file(), words
    trainer = getattr(args, "trainer", None)
    assert trainer is None or trainer in catalogue.trainer_names() or f"class {trainer}(" in text, words
    return args


SWEEP_BLOCKS = [
    (page.name, text)
    for page in PAGES
    for language, _, text in blocks(page)
    if language == "yaml" and re.search("^rows:", text, re.M)
]


@pytest.mark.parametrize(("page", "text"), SWEEP_BLOCKS)
def test_sweep_files_of_the_pages_can_be_planned(page, text, tmp_path):
    """A sweep of the user's own, as the page shows it."""
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    sweep_file = sheet.read_sweep(str(tmp_path / "mine.yaml"))
    entries = sheet.expand(sweep_file, plan.Request("", (), out=str(tmp_path / "out")), ())
    assert {entry.row_label for entry in entries if entry.label} == {row["label"] for row in sweep_file.rows}
    assert len({entry.run.folder for entry in entries}) == len(entries)


@functools.cache  # pages show the same ones
def planned(command, *words):
    """The exit code of a command that only says what it would do."""
    return PLANNERS[command].main([*words, "--dry-run"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken_and_can_be_planned(page, tmp_path, monkeypatch, capsys):
    shown = [words for language, _, text in blocks(page) if language == "bash" for words in split_lines(text)]
    lines = [as_cli([word for word in words if word != "..."]) for words in shown]
    lines += [as_cli(words) for words in inline_commands(page)]
    monkeypatch.chdir(tmp_path)
    for words in filter(None, lines):
        if words[0] == "COMMAND" or "--help" in words:
            continue
        if len(words) == 1 or {"METHOD", "DATASET", "NAME"} & set(words):  # a command is only named, or its form shown
            assert words[0] in PARSERS, words
            continue
        args = check(words, page)
        needs_files = getattr(args, "imports", ()) or any("folder_" in w or w.endswith(".yaml") for w in words)
        if words[0] in PLANNERS and not needs_files:
            assert planned(*words) == 0, (words, capsys.readouterr().err)


def files_of(page):
    """Files whose whole text a page shows: code that begins with its name, yaml that the line before names."""
    text = page.read_text(encoding="utf-8")
    code = {
        re.match(r'"""(\w+\.py): ', body)[1]: body for body in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    }
    return code | dict(re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)^```$", text, re.M | re.S))


@pytest.fixture
def run_marked(helper, tmp_path):
    """`run_marked(page, mark)` runs the marked blocks of a page in the test's folder; gives what they printed."""

    def go(page, mark="run"):
        marked = [text for language, marks, text in blocks(page) if language == "bash" and marks == mark]
        lines = [as_cli(words) for text in marked for words in split_lines(text)]
        assert lines
        out, err, printed = tmp_path / "stdout", tmp_path / "stderr", ""
        for words in lines:
            words = [str(ROOT / w) if w.startswith(OF_THE_CHECKOUT) else w for w in words]
            code = helper.run({"words": words, "cwd": str(tmp_path), "out": str(out), "err": str(err)})
            assert code == 0, (words, out.read_text()[-3000:], err.read_text()[-3000:])
            printed += out.read_text()
        return printed

    return go


def test_the_quickstart_runs(tmp_path, run_marked):
    out = run_marked(ROOT / "docs" / "quickstart.md")
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    files = {path.name + "/" * path.is_dir() for path in (tmp_path / "output" / "by-hand").iterdir()}
    assert files - {locks.LOCK_NAME} == set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*`) \|", page, re.M))))
    assert "gain of CoOp" in out and "weak evidence" in out
    predictions = json.loads((tmp_path / "preds.json").read_text())["predictions"]
    images = sorted((ROOT / "embedded/icons/line/star").iterdir())
    assert len({row["path"] for row in predictions}) == len(images)
    assert (tmp_path / "preds.csv").read_text().count("\n") == 1 + 3 * len(images)


def test_the_trainer_of_the_page_runs(tmp_path, run_marked):
    page = ROOT / "docs" / "adding-a-trainer.md"
    files = files_of(page)
    assert set(files) == {"text_residual.py", "text_residual.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    out = run_marked(page)
    folder = tmp_path / "output/fewshot/icons/TextResidual/text_residual/shots16/line/seed1"
    record = json.loads((folder / "record.json").read_text())
    first, second = (entry["ce"] for entry in record["history"])
    assert second < first and record["prompt"] == "a photo of a {}." and record["metrics"]["test"]["accuracy"] > 50
    assert "gain of TextResidual (text_residual)" in out and "plain classifier: scores = " in out


def test_the_data_set_of_the_page_runs(tmp_path, run_marked):
    page = ROOT / "docs" / "adding-a-data-set.md"
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pictures = tmp_path / "my_data" / "weather"
    pictures.mkdir(parents=True)
    for domain, light in (("day", 220), ("night", 60)):
        for name, colour in (("cat", (light, light // 2, 0)), ("fire-truck", (light, 0, 0))):
            for number in range(10):
                Image.new("RGB", (40, 40), colour).save(pictures / f"{domain}_{name}_{number:03}.png")
    (pictures / "notes.txt").write_text("not a picture")
    out = run_marked(page, "run weather")
    records = [json.loads(path.read_text()) for path in (tmp_path / "output").rglob("record.json")]
    lodo = {record["target_domains"][0]: record for record in records if record["task"] == "lodo"}
    assert {name: record["metrics"]["test"]["total"] for name, record in lodo.items()} == {"day": 20, "night": 20}
    (few, *_) = [record for record in records if record["task"] == "fewshot"]
    assert few["num_train"] == 8 and few["metrics"]["test"]["total"] == 4
    assert few["classnames"] == ["cat", "fire_truck"] and "named files in" in few["protocol"]
    assert "Weather, task lodo, test images" in out


def test_methods_and_tasks_are_described():
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)$", methods, re.M)) == set(catalogue.trainer_names())
    for name in catalogue.trainer_names():
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", methods, re.M | re.S)
        keys = {key.split(".")[2] for key in KEYS if key.startswith(f"TRAINER.{name.upper()}.")}
        named = {
            key
            for key in re.findall(r"`([A-Z_]{4,})\b", section)
            if not key.startswith(("MODEL", "TRAINER", "DATASET"))
        }
        assert named <= keys, (name, named - keys)
    protocols = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| ", protocols, re.M) == list(TASKS)
    words = {
        word for page in DOCS for word in re.findall(r"`((?:[A-Z_]+\.)+[A-Z_]+)\b", page.read_text(encoding="utf-8"))
    }
    plain = {word for word in words if not re.match(r"(TRAINER|MODEL|DATASET)\.(NAME|[A-Z]+)$", word)}
    assert {word for word in plain if not word.endswith("_")} <= KEYS | {key.rpartition(".")[0] for key in KEYS}


def test_quoted_messages_are_in_the_source():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    packages = ("clip", "engine", "trainers", "datasets", "results", "experiments", "cli")
    source = "\n".join(
        path.read_text(encoding="utf-8") for package in packages for path in (ROOT / package).rglob("*.py")
    )
    source += (ROOT / "scripts" / "task.sh").read_text(encoding="utf-8")
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)  # texts that are written in several parts
    quoted = [text for row in re.findall(r"^\| (.*?) \| ", page, re.M) for text in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) > 10
    for text in quoted:
        for part in re.split(r"\.\.\.|KEY|\$\(.*?\)", text):
            assert part.strip(" :,;") in source, text


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == {page.name for page in DOCS} - {"index.md"}


def test_7_8_links_lead_somewhere():
    """Row 7.8: the pages beside a page, and the headings in them, are there."""
    titles = {}
    for page in (*DOCS, *ROOT.glob("*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        heads = [re.sub(r"[^\w\s-]", "", head.lower()) for head in re.findall(r"^#+ (.+)$", text, re.M)]
        titles[page] = {head.replace(" ", "-") for head in heads}, re.findall(r"\]\(([^)\s:]+)\)", text)
    lost = [
        f"{page.name}: {link}"
        for page, (_, links) in titles.items()
        for link in links
        for file, _, anchor in [link.partition("#")]
        if not (target := (page.parent / file if file else page).resolve()).exists()
        or (anchor and anchor not in titles[target][0])
    ]
    assert not lost and sum(len(links) for _, links in titles.values()) > 100


def test_7_12_7_14_statements_that_were_withdrawn_stay_out():
    """Rows 7.12 and 7.14: two gains of different targets, and a spread of forms that shows nothing."""
    text = {page.name: " ".join(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert not [
        name for name, words in text.items() if re.search(r"twice as much on a style|has nothing to remove", words)
    ]
    assert "The spread of the prompt forms C, CP and PC does not show any of this" in text["when-they-help.md"]
