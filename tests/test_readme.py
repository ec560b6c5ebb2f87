"""The README and the metadata of the repository: commands, links, named files, the example of a method."""

import json
import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml

from dassl_clip.cli import train
from dassl_clip.cli.__main__ import COMMANDS
from dassl_clip.results.records import read_record

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "toolbox" / "README.md"]


def test_two_commands_set_up_and_run():
    commands = re.findall(r"^pip install .* && .*$", README, re.MULTILINE)
    done = [command.split(" && ")[1] for command in commands]
    rows = "ZeroshotCLIP:own_words StyleProjection:own_words CLAP:own_words"
    assert done == [f"dassl-clip compare icons --tasks lodo --methods {rows}", "pytest -n 2 --dist loadfile"]


def test_speeds_are_those_of_the_page_that_the_benchmarks_write():
    page = re.sub(" +", " ", (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\|.* \d+ x\b.*\|$", README, re.MULTILINE)
    assert len(rows) > 2 and all(row in page for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    named = [page.parent / link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    folders = r"\b(?:scripts|configs|benchmarks|docs|tools|tests)/[\w/{}.-]+\.(?:sh|yaml|py|md|png)\b"
    mentioned = (path for path in re.findall(folders, text) if "{" not in path)
    named += [ROOT / path for path in mentioned if path != "tools/train.py"]  # Dassl's
    assert [str(path) for path in named if not path.exists()] == []
    assert set(re.findall(r"(?:`|^)dassl-clip ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_the_example_of_a_new_method_runs_as_printed(tmp_path, monkeypatch):
    (code,) = re.findall(r'```python\n("""mean_proxy.*?)```', README, re.DOTALL)
    (line,) = re.findall(r"`python train\.py (--import .*?)`", README, re.DOTALL)
    (tmp_path / "mean_proxy.py").write_text(code)
    assert len(code.splitlines()) <= 40
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(line)]
    monkeypatch.chdir(tmp_path)
    assert train.main([*words, "DATALOADER.NUM_WORKERS", "0"]) == 0
    record = read_record(tmp_path / "output" / "mean_proxy")
    assert record["method"] == "MeanProxy" and record["metrics"]["test"]["accuracy"] > 100 / 45 * 5


def sections(text):
    """Of each `##` section: fenced blocks, names in backticks, targets of links, numbers, and rows of tables."""
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        fenced = re.findall(r"^```.*?^```$", part, re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^```.*?^```$", "", part, flags=re.MULTILINE | re.DOTALL)
        code = Counter(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose))
        plain = re.sub(r"`[^`]+`", "", prose)
        links = Counter(re.findall(r"\]\(([^)]+)\)", plain)) - Counter(["README.md", "README.zh.md"])
        numbers = Counter(re.findall(r"[-+]?\d+(?:[.,/]\d+)*", re.sub(r"\]\([^)]+\)", "", plain)))
        yield fenced, code, links, numbers, len(re.findall(r"^\|", prose, re.MULTILINE))


def test_the_chinese_readme_has_the_same_commands_links_and_numbers():
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    assert "[中文](README.zh.md)" in README.splitlines()[2] and "[English](README.md)" in chinese.splitlines()[2]
    ours, theirs = list(sections(README)), list(sections(chinese))
    assert len(ours) == len(theirs) > 4 and sum(len(part[0]) for part in ours) >= 6
    for one, other in zip(ours, theirs):
        assert one == other


def test_the_citation_is_a_cff_file():
    """Required keys of CFF 1.2.0, of the software and of each reference; the version is the package's."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys() and cff["cff-version"] == "1.2.0"
    assert f'version="{cff["version"]}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    for work in (cff, *cff["references"]):
        assert {"title", "type", "authors"} <= work.keys() and work["authors"]
        assert all(author.get("name") or author.get("family-names") for author in work["authors"])
    assert [work["title"].partition(":")[0] for work in cff["references"]][:2] == ["GOPro", "CLAP"]


def test_hooks_run_what_the_test_extra_installs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    setup, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", ".ci/run"))
    for hook in repo["hooks"]:
        assert f'"{hook["entry"].split()[0]}>=' in setup and f"\n{hook['entry']}" in ci, hook


def test_the_picture_is_drawn_from_records(tmp_path):
    """Of made-up records of every row, domain and task; a bar has the length of its gain."""
    names = runpy.run_path(str(ROOT / "tools" / "draw_readme.py"))
    record = {
        "schema_version": 1, "config": "icons", "dataset": "Icons", "protocol": "p", "selection_rule": "last",
        "class_subset": "all", "shots": 16, "seed": 1, "split_seed": 1, "prompt": "a {}.", "num_train": 10,
        "losses": {}, "backbone": {"name": "A", "weights_hash": "0"}, "seconds": {"train": 1, "test": 1, "total": 2},
        "peak_memory_mb": 1.0, "versions": {}, "toolbox": {}, "device": "cpu", "precision": "fp32", "git_revision": "",
        "config_hash": "1", "data_fingerprint": "", "command": "", "finished_at": "2024-01-01T00:00:00+00:00",
        "transductive": False,
    }  # fmt: skip
    for task in names["TASKS"]:
        for number, row in enumerate(("ZeroshotCLIP", *names["ROWS"])):
            base, _, method = row.rpartition(" + ")
            for domain in ("emoji", "flat", "line", "solid"):
                facts = {"task": task, "method": method, "source_domains": [domain], "target_domains": [domain]}
                facts |= {"refines": {"method": base, "config": "icons"}} if base else {}
                test = {"accuracy": 70.0 + number, "error_rate": 30.0 - number, "macro_f1": 1, "total": 9, "correct": 1}
                folder = tmp_path / task / row / domain
                folder.mkdir(parents=True)
                (folder / "record.json").write_text(json.dumps(record | facts | {"metrics": {"test": test}}))
    gains = names["read_table"](tmp_path, "lodo")
    assert [gains[f"gain of {row} (icons)"]["mean"] for row in names["ROWS"]] == [1, 2, 3, 4, 5, 6, 7]
    names["main"]([str(tmp_path), "--out", str(tmp_path / "gains.png")])
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
