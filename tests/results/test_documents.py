"""YAML documents: a key that stands twice is refused with both lines, wherever it stands.

Covers `results/documents.py` (hostile documents: `tests/safety/test_malicious.py`).
"""

import pytest

from dassl_clip.results import documents


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("OPTIM:\n  LR: 0.1\n  MAX_EPOCH: 2\n  LR: 0.2\n", "the key 'LR' stands twice, in lines 2 and 4"),
        ("SEED: 1\nOPTIM: {LR: 1}\nSEED: 1\n", "the key 'SEED' stands twice, in lines 1 and 3"),
        ("rows:\n- {method: CoOp, method: GOPro}\n", "the key 'method' stands twice, in lines 2 and 2"),
        ('"a": 1\na: 2\n', "the key 'a' stands twice, in lines 1 and 2"),
    ],
)
def test_3_4_a_key_that_stands_twice_is_refused(tmp_path, text, told):
    """Row 3.4: PyYAML takes the last one without a word."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        documents.read_yaml(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(caught.value)


def test_merged_keys_may_be_overridden(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: {x: 1}\n")
    assert documents.read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1}}


@pytest.mark.parametrize("run", ["", "1", "text", "[1]"])
def test_8_1_the_groups_of_a_runs_configuration_are_groups(tmp_path, run):
    """(row 8.1)"""
    lines = ["TRAINER: {NAME: CoOp}", "DATASET: {NAME: PACS}", "MODEL: {BACKBONE: {NAME: RN50}}"]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert documents.read_run_config(tmp_path / "config.yaml")["TRAINER"] == {"NAME": "CoOp"}
    (tmp_path / "config.yaml").write_text("\n".join([*lines, f"RUN: {run}"]))
    with pytest.raises(ValueError, match="RUN should be a group of keys"):
        documents.read_run_config(tmp_path / "config.yaml")
