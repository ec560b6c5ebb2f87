"""The README: its two commands, the files and commands that it names, and its example of a new method, run for real."""

import re
import shlex
from pathlib import Path

import pytest

from dassl_clip.cli import train
from dassl_clip.cli.__main__ import COMMANDS
from dassl_clip.results.records import read_record

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "toolbox" / "README.md"]


def test_two_commands_set_up_and_run():
    commands = re.findall(r"^pip install .* && .*$", README, re.MULTILINE)
    done = [command.split(" && ")[1] for command in commands]
    assert done == ["bash scripts/gopro/main.sh icons 1", "pytest -n 2 --dist loadfile"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_scripts_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:scripts|configs|benchmarks|docs)/[\w/{}.-]+\.(?:sh|yaml|py|md)\b", text):
        if "{" not in path:
            assert (ROOT / path).is_file(), path
    for command in re.findall(r"(?:`|^)dassl-clip ([a-z]+)", text, re.MULTILINE):
        assert command in COMMANDS, command


def test_the_example_of_a_new_method_runs_as_printed(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (line,) = re.findall(r"`python train\.py (--import .*?)`", README, re.DOTALL)
    (tmp_path / "mean_proxy.py").write_text(code)
    assert len(code.splitlines()) <= 40
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(line)]
    monkeypatch.chdir(tmp_path)
    assert train.main(words) == 0
    record = read_record(tmp_path / "output" / "mean_proxy")
    assert record["method"] == "MeanProxy" and record["metrics"]["test"]["accuracy"] > 100 / 45 * 5
