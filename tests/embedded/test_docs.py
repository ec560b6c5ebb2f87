"""The page `docs/icons.md`.

Covers: commands parse, the sources table against SOURCES.csv, the zero-shot table and the counts against `build.json`
and the split file.
"""

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from build_icons.__main__ import parser
from build_icons.selection import DOMAINS

from dassl_clip.embedded import CLIP_FOLDER, ICONS_FOLDER

PAGE = (Path(__file__).parents[2] / "docs" / "icons.md").read_text(encoding="utf-8")
RECORD = json.loads((CLIP_FOLDER / "build.json").read_text(encoding="utf-8"))
COMMANDS = sorted(set(re.findall(r"python -m tools\.build_icons([^`\n#]*)", PAGE)))


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_parse(arguments):
    parser().parse_args(shlex.split(arguments))


def test_flags_of_the_page_exist():
    flags = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert flags and flags <= set(parser().format_help().replace("[", " ").replace("]", " ").split())


def test_sources_table():
    with (ICONS_FOLDER / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    counts = Counter(row["pack"] for row in sources)
    for row in sources:
        domain = row["path"].split("/")[0]
        line = (
            f"| {domain} | [{row['pack']}]({row['author_url']}) {row['version']} | {counts[row['pack']]} | "
            f"{row['author']} | [{row['spdx']}]({row['licence_url']}) |"
        )
        assert line in PAGE


def test_zero_shot_table():
    for prompt, row in RECORD["zero_shot"]["all"].items():
        assert f"| {prompt} | " + " | ".join(f"{row[name]:.1f}" for name in (*DOMAINS, "mean")) + " |" in PAGE
    test = RECORD["zero_shot"]["test"]["a photo of a {}."]
    assert ", ".join(f"{name} {test[name]:.1f}" for name in (*DOMAINS, "mean")) in PAGE


def test_counts(rows):
    parts = Counter((row["domain"], row["split"]) for row in rows)
    for domain in DOMAINS:
        assert re.search(
            rf"\| {domain} \| .* \| " + r" \| ".join(str(parts[domain, p]) for p in ("train", "val", "test")), PAGE
        )
    corpus = RECORD["corpus"]
    for key in ("pictures", "candidates", "near_duplicates", "concepts"):
        assert f"{corpus[key]:,}" in PAGE
    assert f"{corpus['packs']} packs" in PAGE
