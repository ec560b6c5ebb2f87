"""The results of checks that are shipped: of every method as it is now, and those that docs/check.md prints."""

import re
from pathlib import Path

import pytest

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine import catalogue
from dassl_clip.engine.overrides import Overrides, resolve_config
from dassl_clip.engine.source import known_budget

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
PRINTED = dict(re.findall(r"^\| `(\w+)` \| \d+ \| \d+ \| (.*) \|$", PAGE, re.MULTILINE))


def test_the_page_has_every_shipped_method():
    assert sorted(PRINTED) == sorted(catalogue.trainer_names())


@pytest.mark.parametrize("name", PRINTED)
def test_a_shipped_result_is_of_the_files_as_they_are(name, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    files = "configs/datasets/icons.yaml", f"configs/trainers/{name}/icons.yaml"
    cfg = resolve_config(Overrides(*files, flags=(("TRAINER.NAME", name),)))
    assert "; ".join(known_budget(TRAINER_REGISTRY.get(name), cfg)) == PRINTED[name], f"dassl-clip check {name}"
