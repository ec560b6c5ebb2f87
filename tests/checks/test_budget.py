"""What a check has found goes from its stored result into records, and from these into tables.

Covers: the budget of results; a result is found by the hash of a method's files and its settings alone; the header, the
column and the mark of transductive rows; evaluations of what other images taught.
"""

import json

import pytest
from yacs.config import CfgNode

from dassl_clip.checks.budget import ASKED, budget
from dassl_clip.checks.suite import FAILS, PASSES, Result
from dassl_clip.engine.source import decisive_settings, known_budget, source_files, source_hash
from dassl_clip.results import budgets


def results(**numbers):
    """Results of the checks that a budget needs, with `group_what={...}` for what was measured; `failed=[...]`."""
    failed = numbers.pop("failed", ())
    measured = {name.replace("_", ".", 1): facts for name, facts in numbers.items()}
    return [Result(FAILS if name in failed else PASSES, "", measured.get(name, {}), name) for name in ASKED]


@pytest.mark.parametrize(("found", "reads"), [
    (results(labels_train={"reads": True}, classes_names={"reads": True}), ["training labels", "class names"]),
    (results(classes_names={"reads": True}), ["class names only"]),
    (results(images_past={"reads": "past"}, images_order={"scores": 3}),
     ["unlabelled: past test images", "the order of the test images"]),
    (results(labels_val={"settings": True, "rule": "last; pull by source validation images"}),
     ["validation labels (selects settings)"]),
    (results(labels_val={"settings": True, "rule": "last"}), ["validation labels (trains on them)"]),
    (results(labels_val={"epoch": True, "rule": "last", "final": "best_val on source validation images"}),
     ["validation labels (selects the epoch)"]),
    (results(labels_val={"epoch": True, "rule": "last", "final": "last"}), ["images of the test alone"]),
    (results(failed=["labels.selection"]), ["TEST LABELS"]),
    (results(failed=["images.batch"], images_past={"reads": "all"}), ["unlabelled: the other images of a batch"]),
    (results(images_past={"reads": "all"}, images_prior={"assumes": True}),
     ["unlabelled: all test images", "equal class sizes"]),
    (results()[1:], []),
])  # fmt: skip
def test_the_budget_follows_from_the_outcomes(found, reads):
    assert budget(found) == reads


def method(folder, body="pass", beside="LIMIT = 1\n"):
    """A class in a file that imports the one beside it."""
    import importlib.util

    (folder / "beside.py").write_text(beside)
    file = folder / "own_method.py"
    file.write_text(f"import beside  # noqa\n\n\nclass Own:\n    {body}\n")
    spec = importlib.util.spec_from_file_location("own_method", file)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["own_method"], sys.modules["beside"] = module, module
    spec.loader.exec_module(module)
    return module.Own


@pytest.fixture
def cfg():
    own = CfgNode({"MODE": "fast", "RATE": 0.5, "CTX_INIT": "a photo of a", "AUTO": "0.2"})
    return CfgNode({"TRAINER": {"NAME": "Own", "OWN": own}, "TEST": {"FINAL_MODEL": "last_step"}})


def test_a_result_holds_for_the_same_files_and_settings(tmp_path, cfg, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
    kind = method(tmp_path / "one")
    assert [file.name for file in source_files(kind)] == ["own_method.py", "beside.py"]
    assert known_budget(kind, cfg) == []
    budgets.store("Own", source_hash(kind), decisive_settings(kind, cfg), {"budget": ["training labels"]})
    assert known_budget(kind, cfg) == ["training labels"]
    assert known_budget(method(tmp_path / "same"), cfg) == ["training labels"]
    assert known_budget(method(tmp_path / "other", beside="LIMIT = 2\n"), cfg) == []
    cfg.TRAINER.OWN.RATE, cfg.TRAINER.OWN.CTX_INIT, cfg.TRAINER.OWN.AUTO = 0.1, "a drawing of a", "0.7"
    assert known_budget(kind, cfg) == ["training labels"]  # numbers and prompts decide nothing that is read
    cfg.TRAINER.OWN.MODE = "slow"
    assert known_budget(kind, cfg) == []


def test_a_broken_result_is_warned_of(tmp_path, cfg, monkeypatch, caplog):
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path))
    path = tmp_path / "checks" / budgets.file_name("Own", "0" * 64, {})
    path.parent.mkdir()
    path.write_text(json.dumps({"budget": 3}))
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert budgets.stored("Own", "0" * 64, {}) == []
    assert "run `dassl-clip check` again" in caplog.text


def test_transductive_is_what_the_check_found():
    seen, unseen = {"budget": ["unlabelled: all test images"]}, {"budget": ["training labels"]}
    assert budgets.is_transductive({**seen, "transductive": False})
    assert not budgets.is_transductive({**unseen, "transductive": True})
    assert budgets.is_transductive({"transductive": True})
    assert not budgets.is_transductive({**seen, "transductive": False, "evaluated_from": "a run on other images"})


def test_a_header_names_the_rows_of_each_budget():
    rows = {"A": [{"budget": ["training labels", "class names"]}], "B": [{"budget": []}], "C": [{}]}
    assert budgets.lines_of(rows) == ["reads, by its check: training labels, class names [A]; not checked [B, C]"]
    assert budgets.lines_of({"B": [{}]}) == []
