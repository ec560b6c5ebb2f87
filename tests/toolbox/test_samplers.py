"""Samplers: shares of domains and classes, no repetition within an epoch, the announced number of batches, errors."""

import itertools
import random
from collections import Counter

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler

from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler


@pytest.fixture
def make_source(image_root):
    path = str(image_root / "ink" / "cat" / "0.png")

    def make(sizes: list[int], attribute: str) -> list[Datum]:
        """Items of each domain or label in shuffled order."""
        keys = [key for key, size in enumerate(sizes) for _ in range(size)]
        random.Random(0).shuffle(keys)
        return [Datum(path, **{attribute: key}) for key in keys]

    return make


def batches_of(sampler, size: int) -> list[list[int]]:
    indices = list(sampler)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def test_torch_samplers_by_name(make_source):
    source = make_source([5], "domain")
    assert type(build_sampler("RandomSampler", data_source=source)) is RandomSampler
    assert type(build_sampler("SequentialSampler", data_source=source)) is SequentialSampler
    assert list(build_sampler("SequentialSampler", data_source=source)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="OddSampler"):
        build_sampler("OddSampler", data_source=source)


@pytest.mark.parametrize(("sizes", "n_domain"), [([40, 25, 31], 2), ([12, 30, 18, 40], 3), ([40, 40, 40, 40, 8], 2)])
def test_some_domains_in_a_batch(make_source, sizes, n_domain):
    source = make_source(sizes, "domain")
    share = 4
    sampler = RandomDomainSampler(source, share * n_domain, n_domain)
    announced = len(sampler)
    seen = set()
    for _ in range(20):
        epoch = batches_of(sampler, share * n_domain)
        assert len(epoch) * share * n_domain == announced == len(sampler)
        flat = list(itertools.chain(*epoch))
        assert len(set(flat)) == len(flat)
        for batch in epoch:
            counts = Counter(source[index].domain for index in batch)
            assert len(counts) == n_domain and set(counts.values()) == {share}
            seen.add(tuple(sorted(counts)))
    assert len(seen) > 1


@pytest.mark.parametrize("n_domain", [0, -1, None])
def test_all_domains_in_a_batch(make_source, n_domain):
    source = make_source([13, 22, 17], "domain")
    sampler = RandomDomainSampler(source, 12, n_domain)
    epoch = batches_of(sampler, 12)
    assert len(epoch) == 13 // 4 == len(sampler) // 12
    assert all(Counter(source[index].domain for index in batch) == {0: 4, 1: 4, 2: 4} for batch in epoch)


def test_domains_in_sorted_order(make_source):
    source = make_source([9, 11], "domain")
    epoch = batches_of(SeqDomainSampler(source, 6), 6)
    assert len(epoch) == 3
    assert all([source[index].domain for index in batch] == [0, 0, 0, 1, 1, 1] for batch in epoch)


@pytest.mark.parametrize("sizes", [[8, 9, 16, 30, 12], [2, 8, 8, 8, 3, 20]])
def test_some_classes_in_a_batch(make_source, sizes):
    source = make_source(sizes, "label")
    sampler = RandomClassSampler(source, 12, 4)
    announced = len(sampler)
    for _ in range(20):
        epoch = batches_of(sampler, 12)
        assert len(epoch) * 12 == announced == len(sampler)
        uses = Counter(list(itertools.chain(*epoch)))
        for batch in epoch:
            counts = Counter(source[index].label for index in batch)
            assert len(counts) == 3 and set(counts.values()) == {4}
        assert all(uses[index] <= 1 for index in uses if sizes[source[index].label] >= 4)


def test_orders_follow_the_generator(make_source):
    source = make_source([20, 20, 20], "domain")
    sampler = RandomDomainSampler(source, 8, 2)
    torch.manual_seed(5)
    first, second = list(sampler), list(sampler)
    torch.manual_seed(5)
    assert list(sampler) == first != second
    generator = torch.Generator().manual_seed(5)
    before = torch.get_rng_state()
    assert list(RandomDomainSampler(source, 8, 2, generator)) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_errors(make_source):
    with pytest.raises(AssertionError, match="cannot be shared"):
        RandomDomainSampler(make_source([9, 9, 9], "domain"), 10, 3)
    with pytest.raises(AssertionError, match="fewer images"):
        SeqDomainSampler(make_source([9, 2], "domain"), 8)
    with pytest.raises(AssertionError, match="the data has 2"):
        RandomDomainSampler(make_source([9, 9], "domain"), 6, 3)
    with pytest.raises(ValueError, match="n_ins=8"):
        RandomClassSampler(make_source([9, 9], "label"), 4, 8)
    with pytest.raises(AssertionError, match="needs 4 classes"):
        RandomClassSampler(make_source([9, 9], "label"), 8, 2)


def test_loader_yields_what_it_announces(make_cfg, make_source):
    source = make_source([14, 23, 17], "domain")
    loader = build_data_loader(
        make_cfg(), "RandomDomainSampler", source, batch_size=6, n_domain=2, tfm=lambda _: torch.zeros(1)
    )
    for _ in range(10):
        assert len(list(loader)) == len(loader)
