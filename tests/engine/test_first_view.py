"""Training on cached features of a fixed view equals training on its images, and opens no file for it again.

Covers the cached first view of `engine/trainer.py` through the command line, for CoOp and both variants of GOPro:
losses, learned parts and scores of both loops; what is encoded how often; workers and the cache switched off; resuming;
changed pictures; transforms that are not fixed; the limit of what is cached; tests of GOPro from cached rows.
"""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine import trainer as engine_trainer
from dassl_clip.engine.config import default_config
from dassl_clip.engine.data import SeededImages, can_be_fixed
from dassl_clip.engine.features import FeatureStore
from dassl_clip.trainers.gopro.trainer import GOPro

VARIANTS = {
    "CoOp": ("CoOp", "TRAINER.COOP.N_CTX", 4),
    "GOPro": ("GOPro", "TRAINER.GOPRO.SHIFT_SCALE", "auto:2"),
    "GOPro-paper": ("GOPro", "TRAINER.GOPRO.VARIANT", "paper"),
    "GOPro-one-view": ("GOPro", "TRAINER.GOPRO.CONSISTENCY_WEIGHT", 0.0, "TRAINER.GOPRO.CONTRASTIVE_WEIGHT", 0.0),
}
EPOCHS = ("OPTIM.MAX_EPOCH", 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def tree(tmp_path, domain_tree):
    """A copy of the small tree that a test may change."""
    shutil.copytree(domain_tree, tmp_path / "tree", copy_function=shutil.copy2)
    return tmp_path / "tree"


@pytest.fixture
def plain_run(run, monkeypatch):
    """A run whose first view is read in every epoch, and whose tests read their images."""

    def go(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(engine_trainer, "can_be_fixed", lambda *view: False)
            patch.setattr(GOPro, "cached_images", lambda self, items: None)
            return run(*args, **options)

    return go


@pytest.fixture
def counted(monkeypatch):
    """Counts images that were decoded, and images that went through the image tower."""
    counts = {"decoded": 0, "encoded": 0}
    views, encode, rows = SeededImages._views, FeatureStore.encode, GOPro._encode

    def decoding(self, picture):
        counts["decoded"] += 1
        return views(self, picture)

    def encoding(self, images):
        counts["encoded"] += len(images)
        return encode(self, images)

    def encoding_rows(self, images):
        counts["encoded"] += len(images)
        return rows(self, images)

    monkeypatch.setattr(SeededImages, "_views", decoding)
    monkeypatch.setattr(FeatureStore, "encode", encoding)
    monkeypatch.setattr(GOPro, "_encode", encoding_rows)
    return counts


def learned(folder):
    (model,) = [p for p in folder.iterdir() if (p / "checkpoint").is_file()]
    name = (model / "checkpoint").read_text().strip()
    return checkpoint.load_checkpoint(model / name)["state_dict"]


def scores(folder):
    kept = np.load(folder / "predictions.npz")
    return dict(zip(kept["paths"], kept["shares"].tolist()))


def assert_same(one, other, tolerance):
    """Losses of every epoch, learned parts, and scores of the tested images."""
    (folder, record, _), (again, repeated, _) = one, other
    assert len(record["history"]) == len(repeated["history"]) > 1
    for epoch, same in zip(record["history"], repeated["history"]):
        assert epoch.keys() == same.keys()
        for key, value in epoch.items():
            assert value == pytest.approx(same[key], abs=tolerance, rel=tolerance), key
    state, equal = learned(folder), learned(again)
    for name in state:
        torch.testing.assert_close(state[name], equal[name], atol=tolerance, rtol=tolerance)
    assert scores(folder).keys() == scores(again).keys()
    for path, shares in scores(folder).items():
        np.testing.assert_allclose(shares, scores(again)[path], atol=max(tolerance, 1e-12))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_plain_loop(run, plain_run, variant):
    """The tower sees other batches, so that features differ in their last digits; nothing else does."""
    assert_same(run(*VARIANTS[variant], *EPOCHS, name="kept"), plain_run(*VARIANTS[variant], *EPOCHS), 1e-5)


@pytest.mark.parametrize("transforms", ["('normalize',)", "('center_crop','normalize')"])
def test_dassl_transforms_without_randomness_are_fixed_too(run, plain_run, transforms, counted):
    """Dassl resizes to the exact size, so that these features are not those of the model's own preprocessing."""
    own = ("INPUT.TRANSFORMS", transforms)
    kept = run(*VARIANTS["CoOp"], *EPOCHS, *own, name="kept")
    assert counted == {"decoded": 12 + 30, "encoded": 12 + 30}
    assert_same(kept, plain_run(*VARIANTS["CoOp"], *EPOCHS, *own), 1e-5)
    _, record, _ = run(*VARIANTS["CoOp"], *EPOCHS, name="own")
    assert abs(record["history"][0]["loss"] - kept[1]["history"][0]["loss"]) > 1e-3


@pytest.mark.parametrize(
    "variant, first, second",
    [
        ("CoOp", {"decoded": 12 + 30, "encoded": 12 + 30}, {"decoded": 0, "encoded": 0}),
        # two random views of 12 images in 3 epochs; 12 + 30 images for rows, 30 for the features of figures
        ("GOPro", {"decoded": 12 * 4 + 60, "encoded": 12 * 7 + 60}, {"decoded": 12 * 3, "encoded": 12 * 6}),
        ("GOPro-one-view", {"decoded": 12 + 60, "encoded": 12 + 60}, {"decoded": 0, "encoded": 0}),
    ],
)
def test_what_is_read_and_encoded(run, counted, variant, first, second):
    """Batches of 6: both of an epoch are whole. The second run finds everything but the random views in the cache."""
    run(*VARIANTS[variant], *EPOCHS, name="first")
    assert counted == first
    counted.update(decoded=0, encoded=0)
    run(*VARIANTS[variant], *EPOCHS, name="second")
    assert counted == second


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_runs_are_equal_to_the_bit_with_workers_and_without_a_cache(run, variant, monkeypatch):
    whole = run(*VARIANTS[variant], *EPOCHS, name="whole")
    assert_same(whole, run(*VARIANTS[variant], *EPOCHS, "DATALOADER.NUM_WORKERS", 2, name="workers"), 0)
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    assert_same(whole, run(*VARIANTS[variant], *EPOCHS, name="off"), 0)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_a_resumed_run_is_equal_to_the_bit_even_if_the_cache_is_lost(run, variant, cache):
    keys = (*VARIANTS[variant], *EPOCHS, "TRAIN.CHECKPOINT_FREQ", 1)
    whole, torn = run(*keys, name="whole"), run(*keys, name="torn")
    folder = torn[0]
    (model,) = [p for p in folder.iterdir() if (p / "checkpoint").is_file()]
    (model / "checkpoint").write_text(checkpoint.epoch_name(1) + "\n")
    for path in (model / checkpoint.epoch_name(2), model / checkpoint.epoch_name(3), folder / "record.json"):
        path.unlink()
    shutil.rmtree(cache)
    assert_same(whole, run(*keys, name="torn"), 0)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_changed_training_pictures_are_not_served_stale(run, plain_run, tree, variant):
    keys = (*VARIANTS[variant], *EPOCHS)
    _, before, _ = run(*keys, root=tree, name="before")
    for path in (tree / "photo").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    after = run(*keys, root=tree, name="after")
    assert abs(before["history"][0]["loss"] - after[1]["history"][0]["loss"]) > 1e-4
    assert_same(after, plain_run(*keys, root=tree), 1e-5)


def test_random_views_are_read_in_every_epoch(run, counted):
    run(*VARIANTS["CoOp"], *EPOCHS, "INPUT.TRANSFORMS", "('random_flip','normalize')")
    assert counted == {"decoded": 12 * 3 + 30, "encoded": 12 * 3 + 30}


class Step:
    """A step of the model's own preprocessing that torchvision does not know."""

    def __init__(self, number):
        self.number = number

    def __repr__(self):
        return f"Step({self.number})"


def test_which_transforms_are_fixed():
    resize, tensor = transforms.Resize(8), transforms.ToTensor()
    own, cfg = transforms.Compose([resize, Step(1), tensor]), default_config()
    assert can_be_fixed(transforms.Compose([resize, Step(1), tensor]), cfg, own)
    assert can_be_fixed(transforms.Compose([resize, tensor]), cfg, own)
    for steps in ([resize, Step(2), tensor], [Step(1), tensor], [resize, transforms.RandomCrop(4), tensor], []):
        assert not can_be_fixed(transforms.Compose(steps), cfg, own)
    for other in (lambda picture: tensor(picture), None, transforms.RandomHorizontalFlip()):
        assert not can_be_fixed(other, cfg, own)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_what_would_take_too_much_room_is_read(run, variant, counted, monkeypatch):
    whole = run(*VARIANTS[variant], *EPOCHS, name="whole")
    counted.update(decoded=0, encoded=0)
    monkeypatch.setattr("dassl_clip.engine.features.MOST_BYTES", 100)
    again = run(*VARIANTS[variant], *EPOCHS, name="again")
    assert counted["decoded"] == 12 * 3 + 30
    assert "would take too much memory" in again[2].out
    assert_same(whole, again, 1e-5)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_workers_live_on_and_make_other_views_in_every_epoch(run, variant, monkeypatch, tmp_path):
    """Random views: two workers serve all epochs, and their views are those of the process itself."""
    random = (*VARIANTS[variant], *EPOCHS, "INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
    whole = run(*random, name="whole")
    views, log = SeededImages._views, tmp_path / "seen"

    def noted(self, picture):
        found = views(self, picture)
        if self.is_train:
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {float(found['img'].double().sum()):.9f}\n")
        return found

    monkeypatch.setattr(SeededImages, "_views", noted)
    assert_same(whole, run(*random, "DATALOADER.NUM_WORKERS", 2, name="workers"), 0)
    processes, sums = zip(*(line.split() for line in log.read_text().splitlines()))
    assert len(set(processes)) == 2 and len(set(sums)) == len(sums) == 12 * 3
    for process in set(processes):  # they end with the training
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)
