"""One run of a plain Dassl trainer through train.py: log, config.yaml, record, resume, evaluation, errors, exit codes.

Covers `cli/train.py`, `experiments/recording.py` and `engine/errors.py`. The trainers lie in a file that knows
Dassl alone, as a third party's does.
"""

import json
import logging
import os
import re
import sys

import pytest
import yaml

from dassl_clip.cli import train
from dassl_clip.engine import errors
from dassl_clip.engine.fingerprint import config_hash
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.results import records, tables
from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean
from dassl_clip.results.groups import group_records


@pytest.fixture
def call(world, monkeypatch, capsys):
    """Run train.py in this process: exit code, stdout, stderr."""

    def run(*words, **options):
        argv = [*world.words(**options), *map(str, words)]
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        code = train.main(argv)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_a_third_party_trainer_trains_and_leaves_a_whole_run_folder(world, call):
    code, _, err = call()
    assert (code, "Traceback" in err) == (0, False)
    log = (world.out / "log.txt").read_text()
    first = log.splitlines()[0]
    assert re.match(r"dassl-clip \S+ \(.+\) on the (embedded|upstream) Dassl toolbox [\d.]+ \(.+dassl\)", first)
    assert "Setting fixed seed: 1" in log.splitlines()[1]
    assert "epoch [2/2] batch [1/2]" in log and "* accuracy: " in log
    assert (world.out / "tiny" / "model.pth.tar-2").is_file()
    resolved = yaml.safe_load((world.out / "config.yaml").read_text())
    assert resolved["OPTIM"]["LR"] == 0.1 and resolved["RUN"]["TASK"] == "lodo"
    assert resolved["RUN"]["CONFIG"] == "tiny"

    record = records.read_record(world.out)
    shown = re.search(r"\* total: (\d+)\n\* correct: (\d+)\n\* accuracy: ([\d.]+)%", log)
    assert record["metrics"]["test"]["total"] == int(shown[1]) == 20
    assert record["metrics"]["test"]["correct"] == int(shown[2])
    assert record["metrics"]["test"]["accuracy"] == pytest.approx(100 * int(shown[2]) / 20)
    assert (record["method"], record["dataset"], record["seed"]) == ("TinyNet", "FolderDomains", 1)
    assert (record["task"], record["config"], record["prompt"]) == ("lodo", "tiny", "some words")
    assert (record["source_domains"], record["target_domains"]) == (["day"], ["night"])
    assert record["selection_rule"] == "last"
    assert re.fullmatch("[0-9a-f]{64}", record["data_fingerprint"])
    assert record["seconds"]["total"] >= record["seconds"]["test"] > 0
    overrides, _ = train.parse(world.words())
    assert record["config_hash"] == config_hash(resolve_config(overrides))


def test_a_trainer_without_training_is_recorded_too(world, call):
    assert call(method="TinyGuess")[0] == 0
    record = records.read_record(world.out)
    assert (record["selection_rule"], record["metrics"]["test"]["total"]) == ("none", 20)
    assert record["num_train"] == 0
    assert record["metrics"]["test"]["accuracy"] > 80


def test_what_a_third_party_trainer_selects_is_recorded(world, call, tmp_path):
    """Also where it trains for no epoch, or its validation images are test images, some or all of them."""
    assert call("OPTIM.MAX_EPOCH", 0)[0] == 0
    record = records.read_record(world.out)
    assert (record["selection_rule"], record["num_train"]) == ("none", 0)
    plugin = tmp_path / "odd_val.py"
    plugin.write_text(
        "from dassl.data.datasets import DATASET_REGISTRY\n"
        "from dassl_clip.datasets.own_folders import FolderDomains\n"
        "@DATASET_REGISTRY.register(force=True)\nclass OddVal(FolderDomains):\n"
        "    def __init__(self, cfg):\n        super().__init__(cfg)\n"
        "        self._val = {'none': None, 'some': self.val + self.test[:1], 'own': self.val}[cfg.RUN.CONFIG]\n"
    )
    best = ("--import", plugin, "DATASET.NAME", "OddVal", "TEST.FINAL_MODEL", "best_val", "RUN.CONFIG")
    rules = {}
    for kind in ("none", "some", "own"):
        assert call("--output-dir", world.root / kind, *best, kind)[0] == 0
        rules[kind] = records.read_record(world.root / kind)["selection_rule"]
    assert rules["none"] == rules["some"] == "best_val on TEST images (diagnostic only)"
    assert rules["own"] == "best_val on source validation images"


def test_tested_images_are_not_trained_on_by_any_trainer(world, call):
    """With DATASET.PROTOCOL all-images inside a domain; a trainer without learned parts says that all are tested."""
    inside = ("--source-domains", "night", "DATASET.PROTOCOL", "all-images")
    code, _, err = call(*inside)
    assert code == 2 and "TinyNet trains on labels, but here the training images are test images too" in err
    assert call(*inside, method="TinyGuess")[0] == 0
    record = records.read_record(world.out)
    assert "inside a domain: every image of it is tested" in tables.method_table(group_records([record])[0]).render()
    assert "held-out" not in record["protocol"]


def test_seed_zero_of_a_yaml_is_kept_and_runs_are_reproducible(world, call):
    world.config.write_text(world.config.read_text() + "SEED: 5\n")
    states = []
    for name in ("a", "b"):
        code, out, _ = call("--seed", 0, "--output-dir", world.root / name)
        assert code == 0 and "Setting fixed seed: 0" in out
        record = records.read_record(world.root / name)
        assert record["seed"] == record["split_seed"] == 0
        states.append({key: record[key] for key in ("metrics", "config_hash", "data_fingerprint")})
    assert states[0] == states[1]


def test_an_interrupted_run_goes_on(world, call):
    faults = ("TRAINER.TINYNET.FAULTS", "lodo night killed_once", "TRAIN.CHECKPOINT_FREQ", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", raise_interrupt)
        assert call(*faults)[0] == 130
    assert not records.is_complete(world.out)
    code, out, _ = call(*faults)
    assert code == 0
    assert "epoch [1/2]" not in out and "epoch [2/2]" in out and "WARNING" not in out


def raise_interrupt(pid, number):
    raise KeyboardInterrupt


def test_more_epochs_go_on_and_another_configuration_is_refused(world, call):
    assert call()[0] == 0
    before = (world.out / "record.json").read_text()
    for pairs in (("OPTIM.LR", 0.5), ("--seed", 7), ("OPTIM.MAX_EPOCH", 1), ("OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.5)):
        code, _, err = call(*pairs)
        assert code == 2 and "holds checkpoints of another configuration" in err
        assert "--resume" in err and "there, " in err
        assert (world.out / "record.json").read_text() == before
    code, out, _ = call("OPTIM.MAX_EPOCH", 3)
    assert code == 0
    assert "epoch [2/3]" not in out and "epoch [3/3]" in out
    assert "WARNING" in out and "OPTIM.MAX_EPOCH: 2 there, 3 now" in out
    other = world.root / "other"
    code, out, _ = call("OPTIM.LR", 0.5, "--resume", world.out, "--output-dir", other, "OPTIM.MAX_EPOCH", 4)
    assert code == 0 and "epoch [4/4]" in out and "epoch [3/4]" not in out


def test_evaluation_of_a_run_folder(world, call):
    assert call()[0] == 0
    trained = json.loads((world.out / "record.json").read_text())
    for model_dir in (world.out, world.out / "tiny"):
        other = world.root / f"again-{model_dir.name}"
        code, out, _ = call("--eval-only", "--model-dir", model_dir, "--output-dir", other)
        assert (code, "epoch [" in out) == (0, False)
        record = records.read_record(other)
        assert record["metrics"] == trained["metrics"]
        assert record["evaluated_from"] == str(world.out)
    before = {path: path.read_bytes() for path in world.out.rglob("*.*") if path.is_file() and path.name != "log.txt"}
    code, _, err = call("--eval-only", "--model-dir", world.out)  # an evaluation has a folder of its own
    assert code == 2 and "is the folder of the run that is evaluated" in err and err.count("\n") == 1
    assert before.items() <= {path: path.read_bytes() for path in world.out.rglob("*.*") if path.is_file()}.items()
    code, out, _ = call("--eval-only", "--model-dir", world.out, "--load-epoch", 2, "--output-dir", world.root / "c")
    named = records.read_record(world.root / "c")
    assert code == 0 and named["metrics"] == trained["metrics"]
    assert (named["selection_rule"], record["selection_rule"]) == ("epoch 2, as asked for", "last")
    (world.out / "record.json").unlink()  # it was stopped before its test
    assert call("--eval-only", "--model-dir", world.out, "--output-dir", world.root / "d")[0] == 0
    assert records.read_record(world.root / "d")["selection_rule"] == "not recorded"


def test_evaluation_of_folders_without_checkpoint(world, call):
    code, _, err = call("--eval-only", "--model-dir", world.root / "absent")
    assert code == 2 and f"there is no folder {world.root / 'absent'}" in err
    (world.root / "empty").mkdir()
    code, _, err = call("--eval-only", "--model-dir", world.root / "empty")
    assert code == 2 and "holds no checkpoint" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("val", "TEST.SPLIT is val, but FolderClasses has no validation images here"),
        ("train", "TEST.SPLIT is 'train'. Training images are not tested. Known: test, val."),
        ("", "TEST.SPLIT is ''. Known: test, val."),
        ("Test", "TEST.SPLIT is 'Test'. Did you mean 'test'?"),
    ],
)
@pytest.mark.parametrize("method", ["TinyNet", "TinyGuess"])
def test_2_5_a_split_that_is_not_there_is_not_replaced_by_the_test(world, call, method, split, sentence):
    """Row 2.5, for plain Dassl trainers: the test images stand in for nothing."""
    for part, domain in (("train", "day"), ("test", "night")):
        (world.images / domain).rename(world.images / part)
    pairs = ["DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()"]
    for mode in (["--eval-only"], []):
        code, out, err = call(*mode, *pairs, "TEST.SPLIT", split, method=method)
        assert code == 2 and err.count("\n") == 1 and sentence in err, (out, err)
        assert "epoch [" not in out and not (world.out / "record.json").exists()


def test_no_train_builds_only(world, call):
    code, out, _ = call("--no-train")
    assert code == 0 and "epoch [" not in out
    assert not (world.out / "record.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trainer", "TinyNett"], "Did you mean 'TinyNet'?"),
        (["OPTIM.LRR", "1"], "Did you mean 'OPTIM.LR'?"),
        (["--config-file", "absent.yaml"], "there is no config file absent.yaml"),
        (["--target-domains", "nigth"], "night"),
        (["--root", "/no/such/folder"], "/no/such/folder"),
        (["--seed", "one"], "invalid int value: 'one'"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_with_code_2(world, call, words, sentence):
    try:
        code, _, err = call(*words)
    except SystemExit as stop:  # the argument parser's own
        assert stop.code == 2
        return
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sentence in err


def test_debug_gives_the_traceback_of_a_mistake(call, monkeypatch):
    code, _, err = call("--trainer", "TinyNett", "--debug")
    assert code == 2 and err.startswith("Traceback") and "TinyNett" in err
    monkeypatch.setenv("DEBUG", "1")
    assert call("--trainer", "TinyNett")[2].startswith("Traceback")


def test_a_bug_keeps_its_traceback_on_stderr_and_in_the_log(world, call):
    code, _, err = call("TRAINER.TINYNET.FAULTS", "lodo night bug")
    assert code == 1
    for text in (err, (world.out / "log.txt").read_text()):
        assert "Traceback" in text and "RuntimeError: a bug in the method" in text


def test_the_console_is_given_back_after_a_run(world, call):
    before = sys.stdout
    call("--no-train")
    assert sys.stdout is before


def test_lines_of_our_rooms_reach_console_and_log(world, call):
    _, out, _ = call()
    line = f"Record written to {world.out / 'record.json'}"
    assert line in out and line in (world.out / "log.txt").read_text()
    assert logging.getLogger("dassl_clip").isEnabledFor(logging.INFO)


def raised(program, **names):
    """What a module of that name raises."""
    with pytest.raises(Exception) as caught:
        exec(program, names)
    return caught.value


@pytest.mark.parametrize(
    ("program", "module", "expected"),
    [
        ("raise UserError('a sentence')", "dassl_clip.somewhere", True),
        ("raise MissingFileError('a sentence')", "dassl_clip.somewhere", True),
        ("raise ValueError('a sentence')", "dassl_clip.somewhere", False),
        ("int('x')", "dassl_clip.somewhere", False),
        ("raise ValueError('a sentence')", "somebody.plugin", False),
        ("raise KeyError('a sentence')", "dassl.utils.registry", True),
        ("raise ValueError", "dassl.utils.registry", False),
        ("open('/no/such/file')", "dassl_clip.somewhere", True),
    ],
)
def test_only_what_tells_a_person_what_to_change_is_a_users_error(program, module, expected):
    error = raised(program, __name__=module, UserError=UserError, MissingFileError=MissingFileError)
    assert errors.is_user_error(error) is expected


def test_suggestions_ignore_case():
    assert did_you_mean("gopro", ["GOPro", "CoOp"]) == " Did you mean 'GOPro'?"
    assert did_you_mean("zzz", ["GOPro", "CoOp"]) == ""
