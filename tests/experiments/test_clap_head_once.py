"""Runs of one seed that start together train CLAP's head once: the others wait, and read it (row 8.4)."""

import pytest

from dassl_clip.cli.__main__ import main
from dassl_clip.results import records

DOMAINS = ("art", "photo", "sketch")


@pytest.fixture
def started(tmp_path, domain_tree, tiny_clip, feature_cache):
    """The records of the three runs of a task that started at the same time, each in a process of its own."""
    (tmp_path / "tree.yaml").write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["task", "CLAP", tmp_path / "tree.yaml", "84", "--task", "lodo", "--data", domain_tree, "--shots", "2"]
    words += ["--out", tmp_path / "out", "--jobs", "3", "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
    words += ["TRAINER.CLAP.MAX_STEPS", "400", "TRAINER.CLAP.CHECK_EVERY", "100", "TRAINER.CLAP.BATCH_SIZE", "12"]
    words += ["TRAINER.CLAP.LATENT_DIM", "32", "DATALOADER.NUM_WORKERS", "0"]
    assert main([str(word) for word in words]) == 0
    return [item.record for item in records.find_records(tmp_path / "out")], feature_cache


def test_8_4_the_head_is_trained_once(started):
    found, cache = started
    assert sorted(record["target_domains"][0] for record in found) == sorted(DOMAINS)
    reused = [record["training"]["reused"] for record in found]
    assert sorted(reused) == [False, True, True]
    assert len({str(record["history"]) for record in found}) == 1
    assert not list(cache.rglob("*.lock"))
