"""Trainers that people wrote for Dassl, unmodified, are checked.

Covers: a DG-shaped one on a small CNN by all checks; a CoOp-shaped one on the embedded CLIP, cut to few layers, by
those of its budget and of classes, state and contract; the command's exit codes, its refusals, and its json file.
"""

import json
from pathlib import Path

import pytest

from dassl_clip.checks.budget import ASKED
from dassl_clip.cli import check

FILE = str(Path(__file__).with_name("strangers.py"))
LESS = ["--only", "classes", "state", "contract", *ASKED]


@pytest.mark.parametrize(("name", "only", "budget", "broken"), [
    # CoOp's shape: an assertion without a text, and tokens in the checkpoint that were never trained
    ("PromptTuner", LESS, ["training labels", "class names"], ["contract.refusals", "contract.checkpoint"]),
    ("TwoHeads", [], ["training labels"], []),
])  # fmt: skip
def test_a_trainer_written_for_dassl_is_checked(name, only, budget, broken, tmp_path, capsys):
    file = tmp_path / "report.json"
    size = "(64, 64)" if name == "PromptTuner" else "(32, 32)"
    pairs = ["OPTIM.NAME", "sgd", "OPTIM.LR", "0.01", "INPUT.SIZE", size, "INPUT.TRANSFORMS", "('normalize',)"]
    code = check.main([name, "--import", FILE, "--json", str(file), *only, *pairs])
    (report,) = json.loads(file.read_text())
    failed = [result["name"] for result in report["results"] if result["verdict"] == "fails"]
    assert (code, failed) == (int(bool(broken)), broken), capsys.readouterr().out
    assert report["budget"] == budget
    verdicts = {result["name"]: result["verdict"] for result in report["results"]}
    assert verdicts["labels.train"] == verdicts["state.resume"] == verdicts["classes.absent"] == "passes"
    assert verdicts["state.processes"] == "does not apply"


@pytest.mark.parametrize(("words", "said"), [
    (["CoOpp"], "there is no method 'CoOpp'. Did you mean 'CoOp'"),
    (["CoOp", "--only", "labls"], "there is no check 'labls'. Did you mean 'labels'"),
    (["CoOp", "--task", "xd"], "--task: 'xd' is not checked"),
    (["CoOp", "OPTIM.LRR", "1"], "OPTIM.LRR"),
])  # fmt: skip
def test_a_users_error_is_one_line(words, said, capsys):
    assert check.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
