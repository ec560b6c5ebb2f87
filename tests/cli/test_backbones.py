"""`dassl-clip backbones`: what it says of each architecture is what its text tower does, and what the docs list."""

import json
import re
from pathlib import Path

import open_clip
from open_clip.model import _build_text_tower

from dassl_clip.cli import backbones
from dassl_clip.clip.text_blocks import plain_reason
from dassl_clip.clip.text_tower import TextTower

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"
CONFIGS = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
OWN = [name for name, config in CONFIGS.items() if "hf_model_name" not in config["text_cfg"]]


def test_6_4_the_reasons_are_those_of_the_towers():
    """Row 6.4: every tower of open_clip's own, built small, has the savings exactly where no reason is given."""
    small = {"width": 32, "heads": 2, "layers": 1, "vocab_size": 49408, "hf_tokenizer_name": None}
    alike = {}  # those that differ in their sizes alone
    for name in OWN:
        alike.setdefault(json.dumps({**CONFIGS[name]["text_cfg"], **small}, sort_keys=True), []).append(name)
    for text, names in alike.items():
        tower = _build_text_tower(24, json.loads(text), quick_gelu=False)
        reader = TextTower(tower, open_clip.SimpleTokenizer(context_length=json.loads(text).get("context_length", 77)))
        assert {plain_reason(CONFIGS[name]) == "" for name in names} == {reader.causal}, names


def test_6_4_the_table_and_the_docs_name_every_one_without_the_savings(capsys):
    """Row 6.4: the list in the docs is that of the command."""
    assert backbones.main(["--plain"]) == 0
    words = (line.split()[:1] for line in capsys.readouterr().out.splitlines())
    shown = [word[0] for word in words if word and word[0] in CONFIGS]
    plain = [name for name, config in CONFIGS.items() if plain_reason(config)]
    assert shown == plain and 0 < len(plain) < len(CONFIGS)
    section = DOCS.read_text(encoding="utf-8").partition("## Text towers without the savings")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([^`]+)`", section)) & set(CONFIGS)
    assert named <= set(plain)
    if f"open_clip {open_clip.__version__}" in section:
        assert named == set(plain) and f"{len(CONFIGS)} architectures" in section and f"{len(plain)} are" in section
    assert backbones.main(["nothing-like-it"]) == 2
