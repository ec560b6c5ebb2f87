"""The training loader: the order of images and their views follow from the epoch's seed alone.

Covers `engine/data.py`: `EpochBatches` against the loader of torch, resumed epochs, the partial batch, samplers that
draw from python's generator, and `training_loader` with workers and without views.
"""

import random

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset
from torchvision.transforms import Compose, RandomCrop, ToTensor

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl_clip.engine.data import EpochBatches, SeededImages, training_loader

IMAGES = TensorDataset(torch.arange(23))


@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_those_of_torchs_loader_wherever_an_epoch_is_resumed(drop_last):
    generator = torch.Generator().manual_seed(7)
    sampler = RandomSampler(IMAGES, generator=generator)
    loader = DataLoader(IMAGES, batch_size=4, sampler=sampler, drop_last=drop_last, generator=generator)
    whole = [batch.tolist() for (batch,) in loader]
    batches = EpochBatches(RandomSampler(IMAGES, generator=(own := torch.Generator())), own, 4, drop_last)
    for first in (0, 3, 0):
        batches.start(7, first)
        assert list(batches) == whole[first:] and len(batches) == len(whole)
        assert [batches.size(number) for number in range(len(whole))] == [len(batch) for batch in whole]
    batches.start(8)
    assert list(batches) != whole


def test_other_samplers_draw_from_the_global_generators():
    class Drawn(Sampler):
        def __len__(self):
            return 8

        def __iter__(self):
            return iter(random.sample(range(8), 8))

    batches, orders = EpochBatches(Drawn(), None, 4, True), []
    for seed in (1, 2, 1):
        random.seed(seed)
        batches.start(5)
        orders.append(list(batches))
    assert orders[0] == orders[2] != orders[1]


def test_views_follow_from_seed_and_image(domain_tree):
    cfg = get_cfg_default()
    items = [Datum(impath=str(path), label=0) for path in sorted((domain_tree / "art" / "dog").iterdir())]
    images = SeededImages(cfg, items, transform=[Compose([RandomCrop(20), ToTensor()])], is_train=True)

    def epoch(seed, first=0, workers=0):
        like = DataLoader(images, batch_size=2, sampler=RandomSampler(images), num_workers=workers)
        loader = training_loader(like, images)
        images.view_seed.fill_(seed)
        loader.batch_sampler.start(seed, first)
        return [batch["img"] for batch in loader]

    state = torch.get_rng_state()
    whole = epoch(3)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"
    for again in (epoch(3, workers=2), epoch(3, first=2)):
        assert all(torch.equal(one, other) for one, other in zip(whole[-len(again) :], again, strict=True))
    assert not torch.equal(whole[0], epoch(4)[0])


def test_no_file_is_opened_without_views():
    items = [type("Item", (), {"impath": f"absent-{n}.png", "label": n, "domain": 0})() for n in range(4)]
    images = SeededImages(get_cfg_default(), items, transform=[], is_train=True)
    loader = training_loader(DataLoader(images, batch_size=2, sampler=RandomSampler(images), num_workers=2), images)
    assert loader.num_workers == 0
    assert sorted(number for batch in loader for number in batch["label"].tolist()) == [0, 1, 2, 3]
