"""The program of docs/python.md runs, and its table names every class."""

import re
from pathlib import Path

import dassl_clip

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_runs(tmp_path, monkeypatch):
    (tmp_path / "embedded").symlink_to(ROOT / "embedded")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    names = {}
    exec(program, names)
    assert names["clf"].predict("embedded/icons/flat/key").tolist().count("key") >= 5
    assert len(names["features"]) == len(names["labels"]) > 300 and (tmp_path / "head.safetensors").is_file()


def test_the_table_has_every_class():
    named = set(re.findall(r"`(\w*Classifier)\b", PAGE))
    assert {name for name in dassl_clip.__all__ if name.endswith("Classifier")} <= named
