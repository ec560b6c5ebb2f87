"""The shipped icons settings of the prompt learners fit the embedded model: real runs of a few steps."""

import pytest

from dassl_clip.cli import train
from dassl_clip.engine import catalogue
from dassl_clip.results.records import read_record


@pytest.mark.parametrize("name", ["KgCoOp", "CoCoOp", "ProGrad", "MaPLe", "PromptSRC"])
def test_a_run_in_the_shipped_setting(name, tmp_path, capsys):
    words = ["--trainer", name, "--dataset-config-file", catalogue.dataset_file("icons"), "--seed", "1"]
    words += ["--config-file", catalogue.trainer_file(name, "", "icons"), "--output-dir", tmp_path]
    words += ["--source-domains", "line", "--target-domains", "line", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1"]
    assert train.main([str(word) for word in words]) == 0, capsys.readouterr().err
    record = read_record(tmp_path)
    assert record["metrics"]["test"]["accuracy"] > 70 and record["losses"]["ce"] > 0
