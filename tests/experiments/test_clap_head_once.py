"""Runs of one seed that start together train CLAP's head once: the others wait, and read it (row 8.4)."""

import logging
import re
import threading

import pytest
import torch

from dassl_clip.cli.__main__ import main
from dassl_clip.engine import feature_cache as cache
from dassl_clip.engine.paths import FEATURE_FOLDER
from dassl_clip.results import locking, records

DOMAINS = ("art", "photo", "sketch")


@pytest.fixture
def started(tmp_path, domain_tree, tiny_clip, feature_cache):
    """The records, with folders, of the three runs of a task that started together, each in its own process."""
    (tmp_path / "tree.yaml").write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["task", "CLAP", tmp_path / "tree.yaml", "84", "--task", "lodo", "--data", domain_tree, "--shots", "2"]
    words += ["--out", tmp_path / "out", "--jobs", "3", "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
    words += ["TRAINER.CLAP.MAX_STEPS", "400", "TRAINER.CLAP.CHECK_EVERY", "100", "TRAINER.CLAP.BATCH_SIZE", "12"]
    words += ["TRAINER.CLAP.LATENT_DIM", "32", "DATALOADER.NUM_WORKERS", "0"]
    assert main([str(word) for word in words]) == 0
    return records.find_records(tmp_path / "out"), feature_cache


def test_8_4_the_head_is_trained_once(started):
    items, cache_folder = started
    found = [item.record for item in items]
    assert sorted(record["target_domains"][0] for record in found) == sorted(DOMAINS)
    reused = [record["training"]["reused"] for record in found]
    assert sorted(reused) == [False, True, True]
    assert len({str(record["history"]) for record in found}) == 1
    assert not list(cache_folder.rglob("*.lock"))

    # the run that trains it says how long that takes
    (folder,) = [item.folder for item in items if not item.record["training"]["reused"]]
    steps = re.findall(r"^step (\d+) of at most 400, eta 0:\d\d:\d\d: loss \d", (folder / "log.txt").read_text(), re.M)
    assert steps == ["100", "200", "300", "400"]


def test_a_run_says_what_it_waits_for(feature_cache, caplog):
    """Another process holds the entry's lock; the head is not trained before that one is gone."""
    facts = {"kind": "content head", "seed": 84}
    path = feature_cache / FEATURE_FOLDER / f"{cache.entry_name(facts)}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    held, trained = locking.acquire(path.with_name(f".{path.stem}.lock"), 0.0), []
    with caplog.at_level(logging.INFO, "dassl_clip"):
        waiting = threading.Thread(target=lambda: cache.cached(facts, lambda: trained.append(1) or torch.ones(3)))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive() and not trained
        held.release()
        waiting.join(10.0)
    assert trained == [1]
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("waiting: ")]
    assert line == f"waiting: another process makes the same content head, which this run then reads ({path})"
