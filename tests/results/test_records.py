"""Run records: schema and its refusals, atomic writing, reading of torn and foreign files, gathering, run identity.

Covers `results/records.py` and `results/environment.py`.
"""

import copy
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dassl_clip.results import environment, records
from dassl_clip.results.environment import environment_facts
from dassl_clip.results.protocols import facts_from_config, task_of

CONFIG = {
    "SEED": 1,
    "OUTPUT_DIR": "output/a",
    "USE_CUDA": True,
    "DATASET": {
        "NAME": "PACS",
        "ROOT": "/data",
        "NUM_SHOTS": 16,
        "SPLIT_SEED": -1,
        "SUBSAMPLE_CLASSES": "all",
        "SOURCE_DOMAINS": ("photo", "sketch"),
        "TARGET_DOMAINS": ("cartoon",),
    },
    "DATALOADER": {"NUM_WORKERS": 4, "TRAIN_X": {"BATCH_SIZE": 4}},
    "OPTIM": {"LR": 0.002},
    "TEST": {"FINAL_MODEL": "last_step"},
    "TRAINER": {"NAME": "GOPro", "GOPRO": {"TAU": 0.1}, "COOP": {"N_CTX": 16}},
}


def make_record(**changes):
    record = facts_from_config(CONFIG) | environment_facts()
    record |= {
        "config_hash": "cd" * 32,
        "prompt": "a photo of a {}.",
        "backbone": {"name": "RN50", "weights_hash": "ab" * 32},
        "num_train": 112,
        "metrics": {"test": {"accuracy": 75.0, "error_rate": 25.0, "macro_f1": 74.0, "total": 4, "correct": 3}},
        "losses": {"loss": 0.5},
        "seconds": {"train": 3.0, "test": 1.0, "total": 4.5},
        "device": "cpu",
        "precision": "fp32",
        "data_fingerprint": "cd" * 32,
        "data": {},
    }
    return record | changes


def test_a_written_record_reads_back_equal(tmp_path):
    record = make_record(note={"x": [1, 2.5, None, True]})
    path = records.write_record(tmp_path / "a" / "b", record)
    assert path == tmp_path / "a" / "b" / "record.json"
    assert records.read_record(path.parent) == {"schema_version": 2, **record}
    assert records.is_complete(path.parent)
    assert os.listdir(path.parent) == ["record.json"]  # no temporary file is left


@pytest.mark.parametrize("key", records.FIELDS)
def test_each_key_is_required_and_typed(tmp_path, key):
    record = {"schema_version": 2, **make_record()}
    missing = {name: value for name, value in record.items() if name != key}
    if key not in ("schema_version", "data"):  # filled in on writing
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            records.write_record(tmp_path, missing)
    with pytest.raises(ValueError, match=f"'{key}' should be"):
        records.write_record(tmp_path, {**record, key: object()})
    assert not (tmp_path / "record.json").exists()


def changed(tree, path, value):
    """A copy of a tree with another value at a path, `a.b.c`."""
    node = tree = copy.deepcopy(tree)
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("metrics.test.accuracy", math.nan, "'metrics.test.accuracy' is nan, not a finite number"),
        ("losses.loss", math.inf, "'losses.loss' is inf, not a finite number"),
        ("peak_memory_mb", -math.inf, "'peak_memory_mb' is -inf"),
        ("metrics.test.accuracy", 101.0, "outside 0 to 100 percent"),
        ("metrics.test.accuracy", "75", "'metrics.test.accuracy' should be a number, not '75'"),
        ("metrics.test.correct", 5, "counts 5 correct of 4"),
        ("metrics.test", 75.0, "'metrics.test' should be a dict of numbers"),
        ("metrics", {}, "'metrics' is empty"),
        ("method", "", "'method' is empty"),
        ("seed", True, "'seed' should be int, not bool"),
        ("shots", 16.0, "'shots' should be int, not float"),
        ("transductive", 0, "'transductive' should be bool, not int"),
        ("backbone", {"name": "RN50"}, "'backbone.weights_hash' should be a text"),
        ("seconds", {"train": 1.0, "test": 1.0}, "'seconds.total' is missing"),
        ("target_domains", [1], "'target_domains' should be a list of names"),
        ("losses", {"loss": np.float32(0.5)}, "'losses.loss' should be a number"),
        ("note", np.zeros(2), "'note' is a ndarray, which JSON cannot hold"),
        ("note", [1, {"a": math.nan}], r"'note\[1\].a' is nan"),
        ("schema_version", 3, "'schema_version' is 3, this program writes 2"),
        ("data", {"fingerprint": 1}, "'data.fingerprint' should be a text"),
    ],
)
def test_faults_are_named_and_the_old_record_stays(tmp_path, path, value, sentence):
    old = records.write_record(tmp_path, make_record()).read_text()
    with pytest.raises(ValueError, match=sentence):
        records.write_record(tmp_path, changed(make_record(), path, value))
    assert os.listdir(tmp_path) == ["record.json"] and (tmp_path / "record.json").read_text() == old


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("history", [{"loss": 1.0}, "x", [1], [[]], [{"loss": "x"}], [{"loss": None}], [{"loss": True}], None]),
        ("reading_notes", ["note", [1], None, {}]),
        ("classnames", ["cat", [1], None]),
        ("source_dataset", [1, None, []]),
        ("versions", [{"torch": 2}, {"torch": None}]),
        ("toolbox", [{"kind": 1}]),
        ("refines", [{"method": "CoOp"}, {"method": 1, "config": ""}, "CoOp", 3, True, [1]]),
        ("trained", [{"shots": "all"}, {"source_domains": "photo"}, [], 1]),
        ("prompt", ["caf\udce9"]),
        ("target_domains", [["\ud800"]]),
        ("seed", [2**63, 10**400]),
        ("peak_memory_mb", [10**400]),
    ],
)
def test_8_1_what_tables_and_figures_read_has_its_shape(tmp_path, path, values):
    """(row 8.1) Any other shape is a broken record that names the key, never an error of what reads it."""
    for value in values:
        record = make_record(schema_version=records.SCHEMA_VERSION) | {path: value}
        (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
        found = records.inspect_record(tmp_path)
        assert found.state == "broken" and f"'{path}" in found.reason, value
        found.reason.encode("utf-8", "backslashreplace")
    deep = json.dumps(make_record(schema_version=records.SCHEMA_VERSION))[:-1] + f', "a": {"[" * 900}{"]" * 900}' + "}"
    (tmp_path / "record.json").write_text(deep, encoding="utf-8")
    assert records.inspect_record(tmp_path).state in ("broken", "complete")


def test_8_1_a_command_of_bytes_that_are_no_text_can_be_recorded(tmp_path, monkeypatch):
    """(row 8.1)"""
    monkeypatch.setattr(sys, "argv", ["train.py", "--import", "caf\udce9.py"])
    written = records.write_record(tmp_path, make_record())
    assert r"caf\udce9.py" in json.loads(written.read_text(encoding="utf-8"))["command"]


def test_torn_foreign_and_older_records_are_broken_not_fatal(tmp_path):
    whole = records.write_record(tmp_path / "good", make_record()).read_text(encoding="utf-8")
    contents = {
        "torn": whole[: len(whole) // 2],
        "empty": "",
        "binary": "\udcff",
        "list": "[1, 2]",
        "older": json.dumps({**make_record(), "schema_version": 0}),
        "unversioned": json.dumps(make_record()),
        "poor": json.dumps({"schema_version": 1, "method": "GOPro"}),
        "nan": whole.replace("75.0", "NaN"),
    }
    for name, text in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    found = {item.folder.name: item for item in records.find_records(tmp_path)}
    assert set(found) == {*contents, "good", "folder"}
    assert found["good"].state == "complete"
    for name in (*contents, "folder"):
        assert (found[name].state, found[name].record) == ("broken", None), name
        assert found[name].reason
        assert records.read_record(tmp_path / name) is None
        assert not records.is_complete(tmp_path / name)
    assert "schema version 0" in found["older"].reason
    assert "'dataset' is missing" in found["poor"].reason
    assert records.inspect_record(tmp_path / "nothing").state == "missing"
    assert records.inspect_record(tmp_path / "absent").state == "missing"


def test_searching_what_is_no_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        records.find_records(tmp_path / "absent")
    (tmp_path / "file.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"file.csv is a file, not a folder: give the output folder"):
        records.find_records(tmp_path / "file.csv")


def rewrite_for_ever(folder):
    while True:
        records.write_record(folder, make_record(note="x" * 100_000))


def test_killing_a_writer_at_any_moment_leaves_a_whole_record(tmp_path):
    records.write_record(tmp_path, make_record())
    context = multiprocessing.get_context("fork")
    for pause in (0.01, 0.03, 0.05, 0.08):
        child = context.Process(target=rewrite_for_ever, args=(tmp_path,))
        child.start()
        time.sleep(pause)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert records.is_complete(tmp_path)


def test_records_obey_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = records.write_record(tmp_path, make_record())
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_facts_from_a_config():
    facts = facts_from_config(changed(changed(CONFIG, "RUN.CONFIG", "vit_b16"), "DATASET.SPLIT_SEED", 5))
    expected = {"method": "GOPro", "config": "vit_b16", "task": "lodo", "dataset": "PACS", "shots": 16, "seed": 1,
                "split_seed": 5, "class_subset": "all", "source_domains": ["photo", "sketch"],
                "selection_rule": "last"}  # fmt: skip
    assert expected.items() <= facts.items()
    assert facts_from_config(CONFIG)["split_seed"] == 1
    best = facts_from_config(changed(CONFIG, "TEST.FINAL_MODEL", "best_val"))
    assert best["selection_rule"] == "best_val on source validation images"


@pytest.mark.parametrize(
    ("source", "target", "task"),
    [
        (["a"], ["a"], "fewshot"),
        (["a", "b"], ["c"], "lodo"),
        (["a", "b"], ["b", "a"], "fewshot"),
        (["a", "b"], ["b"], ""),
        ([], [], ""),
        (["a"], [], ""),
    ],
)
def test_task_follows_from_the_domains(source, target, task):
    assert task_of(source, target) == task


def test_environment_of_this_very_process():
    facts = environment_facts()
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["versions"]["numpy"] == np.__version__
    if sys.platform == "linux":
        resident = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
        assert resident * 0.8 < facts["peak_memory_mb"] < 100_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["finished_at"])
    assert facts["threads"] == (sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0)
    assert facts["toolbox"]["kind"] in ("embedded", "upstream")
    assert Path(facts["toolbox"]["path"]).name == "dassl"


def test_git_revision_is_that_of_the_checkout():
    root = Path(records.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert environment.git_revision().removesuffix("+changes") == head


def test_command_line_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--root", "my data", "DATASET.SOURCE_DOMAINS", "('a', 'b')"])
    assert shlex.split(environment.command_line()) == ["python", *sys.argv]
