"""The line about a loader that is the bottleneck: a slow one gets it, a fast one does not, and its figures are right.

Covers `engine/waiting.py` with real loaders and with given times, and a run whose images are slow to read.
"""

import re
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dassl_clip.engine import data as images
from dassl_clip.engine import waiting
from dassl_clip.engine.waiting import Watched


class Slow(Dataset):
    """Items that take some time each."""

    def __init__(self, count, seconds):
        self.count, self.seconds = count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"label": index, "img": torch.zeros(3)}


def passed(read, work, workers=0, count=24, batch=4):
    """A pass over items that take `read` seconds each, with `work` seconds for each batch."""
    watched = Watched(DataLoader(Slow(count, read), batch, num_workers=workers), "features", workers)
    assert len(watched) == count // batch
    for _ in watched:
        time.sleep(work)
    return watched


def test_a_slow_loader_is_told_and_a_fast_one_is_not(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SECONDS", 0.1)
    with caplog.at_level("INFO", logger="dassl_clip"):
        fast = passed(read=0.0005, work=0.03)
        assert caplog.text == ""
        slow = passed(read=0.01, work=0.005)
    assert fast.waited < 0.3 * (fast.waited + fast.worked) and slow.images == 24
    assert slow.waited > 0.24 and 0.03 < slow.worked < slow.waited
    assert len(caplog.records) == 1 and "is waiting for images" in caplog.text
    share, whole = map(float, re.search(r"features: (\d+) % of (\d+) s", caplog.text).groups())
    assert abs(share - 100 * slow.waited / (slow.waited + slow.worked)) < 1 and whole == round(
        slow.waited + slow.worked
    )


def test_short_passes_say_nothing(caplog):
    with caplog.at_level("INFO", logger="dassl_clip"):
        assert passed(read=0.005, work=0).waited > 0.1
    assert caplog.text == ""


def of_times(waited, worked, workers, images=1000):
    watched = Watched([], "epoch 1/5", workers)
    watched.waited, watched.worked, watched.images = waited, worked, images
    return watched


@pytest.mark.parametrize(
    "waited, worked, workers, cores, expected",
    [
        (30, 10, 0, 16, ("75 % of 40 s", "gives 33 images/s", "could take 100", "NUM_WORKERS 3 in place of 0")),
        (30, 10, 2, 16, ("gives 25 images/s", "could take 100", "NUM_WORKERS 8 in place of 2")),
        (30, 10, 2, 4, ("NUM_WORKERS 4 in place of 2 (4 cores are here)",)),
        (30, 0, 0, 8, ("gives 33 images/s. ", "NUM_WORKERS 8 in place of 0")),
        (30, 10, 4, 4, ("NUM_WORKERS is 4 and 4 cores are here", "files of about the model's input size")),
        (30, 10, 0, 1, ("NUM_WORKERS 1 in place of 0",)),
    ],
)
def test_figures_and_cures(waited, worked, workers, cores, expected):
    """0 workers read while the loop stands still: 1000 images in 30 s; more work on during the other 10 s."""
    line = of_times(waited, worked, workers).advice(cores)
    assert line.startswith("epoch 1/5: ") and all(part in line for part in expected), line


@pytest.mark.parametrize("waited, worked", [(2.9, 7.1), (4.9, 0.0), (0.0, 100.0)])
def test_little_waiting_is_no_advice(waited, worked):
    assert of_times(waited, worked, 0).advice(8) == ""


def test_passes_without_images_say_nothing(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SECONDS", 0)
    with caplog.at_level("INFO", logger="dassl_clip"):
        assert [len(batch) for batch in Watched(DataLoader(torch.arange(6), 4), "rows", 0)] == [4, 2]
    assert caplog.text == ""


def test_a_run_says_it_once_for_each_kind_of_pass(run, monkeypatch):
    """Three epochs over random views, and the test, of images that take 20 ms each."""
    monkeypatch.setattr(waiting, "SECONDS", 0.05)
    item = images.SeededImages._item
    monkeypatch.setattr(images.SeededImages, "_item", lambda self, index: time.sleep(0.02) or item(self, index))
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    random = ("INPUT.TRANSFORMS", "('random_flip','normalize')", "OPTIM.MAX_EPOCH", 3)
    _, _, output = run("CoOp", "TRAINER.COOP.N_CTX", 2, *random)
    lines = [line for line in output.out.splitlines() if "is waiting for images" in line]
    assert [line.split(":")[0].split()[0] for line in lines] == ["epoch", "features"]
    assert all("DATALOADER.NUM_WORKERS" in line and "in place of 0" in line for line in lines)
