"""What a plan needs is checked once before its first run: `experiments/preflight.py`, through `dassl-clip`.

Everything that is wrong stands in one message, and nothing is started; what a run would take is not refused.
"""

import pytest
import yaml

from dassl_clip.cli.__main__ import main

ROW = {"method": "ZeroshotCLIP:icons"}


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: nothing was started") and told.err.count("\n") == 1
    assert " at a time" not in told.out
    return told.err


def test_all_that_is_wrong_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    rows = [
        ROW,
        {**ROW, "label": "weights", "set": {"MODEL.BACKBONE.NAME": "ViT-B/16", "MODEL.BACKBONE.WEIGHTS": "no.pt"}},
        {**ROW, "label": "names", "datasets": ["icons"], "set": {"DATASET.CLASSNAMES": "names.txt"}},
        {"method": "CoOp:icons", "datasets": ["icons"], "shots": 500, "seeds": [1, 2]},
    ]
    tree = {"task": "fewshot", "datasets": ["icons", "dtd"], "rows": rows}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    err = refused(capsys, "sweep", "mine.yaml", "--out", "taken/runs", "--data", "nowhere")
    assert "since 6 things are wrong: (1) " in err and "(7)" not in err
    for part in (
        "--out taken/runs: ",  # 4 domains of the icons and dtd, twice; the names; and CoOp with two seeds
        "/taken is a file; name another folder [22 of 22 runs]",
        "MODEL.BACKBONE.WEIGHTS: there is no file no.pt [5 of 22 runs]",
        "names.txt holds 2 names, but there are 45 classes",
        "nowhere is not a folder; the part of it that exists is ",
        "DATASET.NUM_SHOTS is 500, but no class of Icons has more than 20 training images",
        "DATASET.NUM_SHOTS is 500, but no class of Icons has more than 16 training images",
    ):
        assert part in err, (part, err)
    assert [part.partition(" of 22 runs]")[0] for part in err.split("[")[1:]] == ["22", "5", "2", "4", "4", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "names.txt", "taken"]


def test_one_thing_that_is_wrong_is_told_as_a_run_would(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    err = refused(capsys, "task", "ZeroshotCLIP", "dtd", "1", "--data", "nowhere", "MODEL.BACKBONE.NAME", "IconsCLIP")
    assert "nowhere" in err and err.rstrip().endswith("[1 of 1 runs]")
    assert list(tmp_path.iterdir()) == []


def test_a_setting_outside_its_limits_is_told_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    err = refused(capsys, "task", "SWAD", "icons", "1", "--task", "lodo", "TRAINER.SWAD.STEPS=-3")
    assert "TRAINER.SWAD.STEPS is -3; expected a number of at least 0 [4 of 4 runs]" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--dry-run"], ["--status"]])
def test_looking_at_a_plan_needs_no_data(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "clap-fewshot", "--data", "nowhere", "--rows", "CLIP", "--datasets", "pacs", *words]) == 0
    assert "error" not in capsys.readouterr().err
