"""The part of a target that is tested under DomainBed's protocol, in records and tables.

Covers: runs on the icons under each DATASET.TEST_PART: the record's facts, sizes, header and title of the table, CSV
columns; parts that stand in tables of their own, however their trials differ; runs of three trials that share a cell;
identity (a part and a trial count, and runs of before the keys stay the same); records of other protocols.
"""

import re

import pytest

from dassl_clip.cli import train
from dassl_clip.cli.__main__ import main
from dassl_clip.datasets import add_config
from dassl_clip.engine.config import default_config
from dassl_clip.engine.fingerprint import config_hash, identity
from dassl_clip.results.groups import group_records
from dassl_clip.results.records import read_record
from dassl_clip.results.tables import method_table


def words(folder, *pairs):
    fixed = ["--trainer", "ZeroshotCLIP", "--dataset-config-file", "configs/datasets/icons.yaml", "--task", "lodo"]
    fixed += ["--source-domains", "flat", "--target-domains", "line", "--output-dir", str(folder)]
    return [*fixed, "MODEL.BACKBONE.NAME", "IconsCLIP", "DATALOADER.NUM_WORKERS", "0", *pairs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders below one: part and trial, the seed being the trial; and one of the usual protocol."""
    root = tmp_path_factory.mktemp("runs")
    for part, trial in (("in", 0), ("in", 1), ("out", 0), ("out", 1), ("all", 0)):
        pairs = ["DATASET.PROTOCOL", "domainbed", "DATASET.TEST_PART", part, "DATASET.TRIAL", str(trial)]
        assert train.main([*words(root / f"{part}{trial}", *pairs), "--seed", str(trial)]) == 0
    assert train.main([*words(root / "dassl"), "--seed", "0"]) == 0
    return root


def test_records_name_the_part_and_the_trial(runs):
    records = {path.name: read_record(path) for path in runs.iterdir()}
    whole = records["dassl"]["metrics"]["test"]["total"]
    sizes = {name: record["metrics"]["test"]["total"] for name, record in records.items()}
    held = int(0.2 * whole)
    assert sizes == {
        "in0": whole - held,
        "in1": whole - held,
        "out0": held,
        "out1": held,
        "all0": whole,
        "dassl": whole,
    }
    for name, record in records.items():
        if name == "dassl":
            assert "test_part" not in record and "trial" not in record
            continue
        assert (record["test_part"], record["trial"]) == (name[:-1], int(name[-1]))
        assert f"test part {name[:-1]}" in record["protocol"] and f"for trial {name[-1]}" in record["protocol"]
    right = {name: record["metrics"]["test"]["correct"] for name, record in records.items()}
    assert right["in0"] + right["out0"] == right["in1"] + right["out1"] == right["all0"] == right["dassl"]


def test_tables_keep_the_parts_apart(runs):
    groups = group_records(read_record(path) for path in sorted(runs.iterdir()))
    found = {}
    for group in groups:
        table = method_table(group)
        header = next(line for line in table.above if line.startswith("protocol: "))
        part = group.facts["test_part"]
        found[part] = group.seeds
        named = {"in": " (in part)", "out": " (out part)", "all": " (whole target)", "": ""}[part]
        assert table.title == f"Icons, task lodo, test images{named}"
        tested = {"in": 'the "in" part (80 %)', "out": 'the "out" part (20 %)', "all": "all", "": "all"}[part]
        assert header.endswith(f"tested on {tested} of the unseen target domain")
        assert ("DomainBed's split" in header) == bool(part)
        assert table.facts.get("test_part", "") == part
    assert found == {"in": [0, 1], "out": [0, 1], "all": [0], "": [0]}


def test_one_seed_does_not_hide_two_trials(runs):
    first, second = (read_record(runs / name) for name in ("in0", "in1"))
    assert len(group_records([first, second | {"seed": 0, "split_seed": 0}])) == 2


def test_the_command_prints_the_part(runs, capsys):
    assert main(["table", str(runs), "--format", "csv"]) == 0
    assert re.search(r"(?m)^.*\btest_part\b", capsys.readouterr().out)
    assert main(["table", str(runs)]) == 0
    text = capsys.readouterr().out
    assert text.count("Icons, task lodo, test images (in part)\n") == 1
    assert text.count('tested on the "out" part (20 %) of the unseen target domain') == 1


def test_part_and_trial_are_of_the_identity():
    def asked(**keys):
        cfg = default_config()
        add_config(cfg)
        for key, value in keys.items():
            cfg.DATASET[key] = value
        return cfg

    hashes = [config_hash(asked(**keys)) for keys in ({}, {"TEST_PART": "out"}, {"TEST_PART": "all"}, {"TRIAL": 1})]
    assert len({*hashes}) == 4
    assert not {"DATASET.TEST_PART", "DATASET.TRIAL", "DATASET.TERRAINCOGNITA"} & {*identity(asked())}
