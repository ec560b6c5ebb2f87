"""Index lists of batches, streams and orders, against loops written from the text of the protocol, and their hashes.

Covers `engine/scenario_cases.py` and `engine/scenarios.py`: what an entry of SCENARIOS.BATCHES and STREAMS means, and
which are refused; batches of
all classes and of a few, with pools smaller than a batch; streams by Dirichlet shares and of separate classes; orders;
classes that no image shows; the same lists from the same seed and number, others from others; the hash; and, of
`engine/scenario_tests.py`, the metrics of draws.
"""

import math
import statistics

import numpy as np
import pytest

from dassl_clip.engine import scenario_cases
from dassl_clip.engine.overrides import Overrides, resolve_config
from dassl_clip.engine.scenario_cases import Batch
from dassl_clip.engine.scenario_tests import draws_metrics
from dassl_clip.engine.scenarios import batch_draws, lists_hash, online_order, stream_order
from dassl_clip.results.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4, 7], [9, 14, 11, 8, 20]))  # 2, 5, 6: no image


def naive_batch(labels, size, low, high, seed, draw):
    """A batch by the protocol's text, one image after another."""
    generator = np.random.default_rng([seed, draw])
    present = sorted(set(labels.tolist()))
    if low is not None:
        count = generator.integers(low, high, endpoint=True)
        if count < len(present):
            present = generator.choice(present, size=count, replace=False).tolist()
    pool = [number for number, label in enumerate(labels.tolist()) if label in present]
    return generator.choice(pool, size=min(size, len(pool)), replace=False).tolist()


def naive_stream(labels, gamma, block, seed, number):
    """A stream by the protocol's text: slots filled class by class, shuffled, cut."""
    generator = np.random.default_rng([seed, number])
    present = sorted(set(labels.tolist()))
    own = {label: [n for n, other in enumerate(labels.tolist()) if other == label] for label in present}
    if gamma is None:
        slots = [own[present[k]] for k in generator.permutation(len(present))]
    else:
        count = min(len(labels) // block, len(present))
        slots = [[] for _ in range(count)]
        for label in present:
            shares, start, total = generator.dirichlet([gamma] * count), 0, 0.0
            for k in range(count):
                total += shares[k]
                end = len(own[label]) if k == count - 1 else math.floor(total * len(own[label]))
                slots[k] += own[label][start:end]
                start = end
    order = [int(n) for slot in slots for n in generator.permutation(np.array(slot, dtype=int))]
    return [order[start : start + block] for start in range(0, len(order), block)]


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("size", "classes"), [(16, None), (16, (1, 4)), (40, (2, 3)), (62, (1, 9)), (5, (5, 5))])
def test_batches_are_those_of_the_protocol(size, classes):
    low, high = classes or (None, None)
    lists = [index.tolist() for index in batch_draws(LABELS, size, classes, draws=30, seed=3)]
    assert lists == [naive_batch(LABELS, size, low, high, 3, draw) for draw in range(30)]


def test_a_batch_has_its_classes_no_repetition_and_as_many_images_as_there_are():
    counts = set()
    for index in batch_draws(LABELS, 25, (1, 3), draws=200, seed=1):
        shown = set(LABELS[index].tolist())
        assert len(set(index.tolist())) == len(index)
        pool = int(np.isin(LABELS, list(shown)).sum())
        assert 1 <= len(shown) <= 3 and (len(index) == 25 or len(index) == pool < 25)
        counts.add(len(shown))
    assert counts == {1, 2, 3}
    everything = batch_draws(LABELS, len(LABELS), (9, 12), draws=3, seed=1)
    assert all(sorted(index.tolist()) == list(range(len(LABELS))) for index in everything)


def test_the_number_of_classes_and_the_images_are_uniform():
    """Five classes of 40 images: each number of 1 to 4 a quarter of 2000 draws, each class in half of them."""
    labels = np.repeat(np.arange(5), 40)
    shown = [set(labels[index].tolist()) for index in batch_draws(labels, 160, (1, 4), draws=2000, seed=5)]
    counts = np.bincount([len(classes) for classes in shown], minlength=5)[1:]
    assert np.abs(counts - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)
    each = [sum(label in classes for classes in shown) for label in range(5)]
    assert max(abs(count - 1000) for count in each) < 5 * math.sqrt(2000 * 0.25)


# --------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("gamma", [0.001, 0.1, 1.0, 100.0, None])
@pytest.mark.parametrize("block", [4, 10, 15, 31, 62, 100])
def test_streams_are_those_of_the_protocol(gamma, block):
    if gamma is not None and block > 31:  # 62 images: a single slot
        with pytest.raises(ValueError, match="a plain shuffle, whatever gamma is"):
            stream_order(LABELS, gamma, block, 2, 0)
        return
    for number in range(4):
        blocks = [index.tolist() for index in stream_order(LABELS, gamma, block, 2, number)]
        assert blocks == naive_stream(LABELS, gamma, block, 2, number)
        assert sorted(n for own in blocks for n in own) == list(range(len(LABELS)))  # the last short one too
        assert [len(own) for own in blocks[:-1]] == [block] * (len(blocks) - 1)


def test_one_class_makes_no_stream_of_clusters():
    with pytest.raises(ValueError, match="1 slot of 4 images: this order is a plain shuffle"):
        stream_order(np.zeros(20, dtype=int), 0.1, 4, 1, 0)
    assert [len(block) for block in stream_order(np.zeros(20, dtype=int), None, 8, 1, 0)] == [8, 8, 4]


def test_separate_classes_follow_one_another_and_small_gammas_cluster():
    order = np.concatenate(stream_order(LABELS, None, 8, 1, 0))
    assert (np.diff(LABELS[order]) != 0).sum() == 4  # five classes that occur
    assert any((np.diff(order[LABELS[order] == label]) < 0).any() for label in np.unique(LABELS))  # shuffled within
    changes = [
        statistics.fmean((np.diff(LABELS[np.concatenate(stream_order(LABELS, gamma, 8, 1, n))]) != 0).mean()
                         for n in range(20))
        for gamma in (0.001, 0.1, 10.0)
    ]  # fmt: skip
    assert changes[0] < changes[1] < changes[2]


def test_an_order_is_a_permutation_of_its_seed_and_number():
    first = online_order(50, 7, 1)
    assert first.tolist() == np.random.default_rng([7, 1]).permutation(50).tolist()
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != online_order(50, 7, 2).tolist() != online_order(50, 8, 1).tolist()


def test_a_draw_depends_on_its_seed_and_number_alone():
    """Ten draws are the first ten of a hundred; names of labels do not count; another seed gives others."""
    some, more = (batch_draws(LABELS, 16, (1, 4), draws, 1) for draws in (10, 100))
    assert [a.tolist() for a in some] == [b.tolist() for b in more[:10]]
    assert [a.tolist() for a in some] == [b.tolist() for b in batch_draws(LABELS * 2 + 1, 16, (1, 4), 10, 1)]
    assert [a.tolist() for a in some] != [b.tolist() for b in batch_draws(LABELS, 16, (1, 4), 10, 2)]
    streams = [np.concatenate(stream_order(LABELS, 0.1, 8, *key)).tolist() for key in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert streams[0] == streams[1] and len(set(map(tuple, streams))) == 3


def test_the_hash_tells_lists_their_blocks_and_labels_apart():
    lists = [stream_order(LABELS, 0.1, 8, 1, number) for number in range(3)]
    usual = lists_hash(LABELS, lists)
    assert usual == lists_hash(LABELS.astype(np.int32), [[own.astype(np.int32) for own in blocks] for blocks in lists])
    other_labels = np.where(np.arange(len(LABELS)) == 5, 2, LABELS)
    merged = [[np.concatenate(blocks)] for blocks in lists]
    one_draw = [[own for blocks in lists for own in blocks]]
    others = [lists_hash(LABELS, merged), lists_hash(LABELS, one_draw), lists_hash(LABELS, lists[:2])]
    others += [lists_hash(LABELS, lists[::-1]), lists_hash(other_labels, lists)]
    assert len({usual, *others}) == 6


# -------------------------------------------------------------------------------------------------------- settings


def test_entries_and_their_names():
    assert scenario_cases.parse_batch("64") == Batch(64) and Batch(64).name == "B64"
    assert scenario_cases.parse_batch("1000:25-50") == Batch(1000, 25, 50)
    assert Batch(1000, 25, 50).name == "B1000 K25-50"
    assert [scenario_cases.parse_stream(text) for text in ("0.1", "1e-3", "separate")] == [0.1, 0.001, None]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("BATCHES", "1", "'1': a batch has at least 2 images"),
        ("BATCHES", "0:1-4", "a batch has at least 2 images"),
        ("BATCHES", "64:4-1", "'64:4-1': the classes are from 1 or more up to no fewer"),
        ("BATCHES", "64:0-4", "the classes are from 1 or more"),
        ("BATCHES", "64:4", "expected SIZE, or SIZE:LEAST-MOST"),
        ("BATCHES", "64-4", "expected SIZE, or SIZE:LEAST-MOST"),
        ("BATCHES", "-5", "expected SIZE, or SIZE:LEAST-MOST"),
        ("BATCHES", "many", "expected SIZE, or SIZE:LEAST-MOST"),
        ("BATCHES", "()", "SCENARIOS.BATCHES is empty"),
        ("BATCHES", "('64', 64)", "SCENARIOS.BATCHES names '64' 2 times"),
        ("BATCHES", "True", "SCENARIOS.BATCHES names entries, but True is none"),
        ("STREAMS", "0", "'0'; expected a positive number"),
        ("STREAMS", "-0.1", "expected a positive number"),
        ("STREAMS", "apart", "or separate for one class after another"),
        ("STREAMS", "('inf',)", "expected a positive number"),
        ("BLOCK", "1", "SCENARIOS.BLOCK is 1: it should be 2 or more"),
        ("DRAWS", "0", "SCENARIOS.DRAWS is 0: it should be 1 or more"),
        ("ORDERS", "0", "SCENARIOS.ORDERS is 0: it should be 1 or more"),
        ("TASK", "batches", "SCENARIOS.TASK is 'batches'. Did you mean 'batch'? Known: batch, stream, online"),
    ],
)
def test_impossible_settings_are_one_line(key, value, sentence, registered):
    with pytest.raises(UserError) as error:
        resolve_config(asked((f"SCENARIOS.{key}", value)))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_task_needs_test_images_a_seed_and_as_many_images_as_its_least_batch(registered):
    task, batches = ("SCENARIOS.TASK", "batch"), ("SCENARIOS.BATCHES", "64")
    resolve_config(asked(("TEST.SPLIT", "val")))
    with pytest.raises(UserError, match=r"TEST\.SPLIT is val, but batch draws from the test images"):
        resolve_config(asked(task, ("TEST.SPLIT", "val")))
    scenario_cases.check_draws(resolve_config(asked(("SEED", "-1"), batches)), 63)
    with pytest.raises(UserError, match="SEED is -1, but batch draws the same images for all methods"):
        scenario_cases.check_draws(resolve_config(asked(task, ("SEED", "-1"))), 1000)
    cfg = resolve_config(asked(task, batches, ("SCENARIOS.STREAMS", "0.5")))
    assert cfg.SCENARIOS.BATCHES == ("64",) and cfg.SCENARIOS.STREAMS == ("0.5",)  # one entry may be a number
    scenario_cases.check_draws(cfg, 64)
    with pytest.raises(UserError, match=r"SCENARIOS\.BATCHES is 64, but 63 images are tested here"):
        scenario_cases.check_draws(cfg, 63)
    scenario_cases.check_draws(resolve_config(asked(task, ("SCENARIOS.BATCHES", "(64, '8:1-2')"))), 8)


def test_only_what_a_task_reads_is_part_of_a_runs_identity(registered):
    """Runs from before these keys keep their identity, whatever a data set's file says of draws."""
    from dassl_clip.engine.fingerprint import config_hash, identity

    def of(*pairs):
        return resolve_config(asked(*pairs))

    assert not any(key.startswith("SCENARIOS") for key in identity(of()))
    assert config_hash(of()) == config_hash(of(("SCENARIOS.DRAWS", "7"), ("SCENARIOS.BLOCK", "9")))
    task = ("SCENARIOS.TASK", "stream")
    named = {key for key in identity(of(task)) if key.startswith("SCENARIOS")}
    assert named == {f"SCENARIOS.{key}" for key in ("TASK", "STREAMS", "BLOCK", "ORDERS")}
    assert config_hash(of(task)) == config_hash(of(task, ("SCENARIOS.DRAWS", "7")))
    assert config_hash(of(task)) != config_hash(of(task, ("SCENARIOS.ORDERS", "7")))
    assert of(task).RUN.CONFIG == "icons" and of(task, ("SCENARIOS.ORDERS", "7")).RUN.CONFIG.endswith("ORDERS=7")


@pytest.fixture
def registered():
    from dassl_clip.engine import registry

    registry.register()


def asked(*pairs):
    """Zero-shot CLIP on the icons, with these pairs."""
    from dassl_clip.engine import catalogue

    files = catalogue.dataset_file("icons"), catalogue.trainer_file("ZeroshotCLIP", "", "icons")
    return Overrides(*map(str, files), flags=(("TRAINER.NAME", "ZeroshotCLIP"), ("SEED", 1)), pairs=pairs)


def test_metrics_of_draws_are_those_by_hand():
    """Draws of 4, 2 and 4 images with 3, 2 and 1 hits: 75, 100 and 25 %."""
    metrics = draws_metrics([np.array([1, 1, 0, 1], bool), np.array([1, 1], bool), np.array([0, 0, 1, 0], bool)])
    error = metrics.pop("standard_error")
    assert error == pytest.approx(math.sqrt(((75 - 200 / 3) ** 2 + (100 - 200 / 3) ** 2 + (25 - 200 / 3) ** 2) / 2 / 3))
    assert metrics == {
        "accuracy": 60.0, "error_rate": 40.0, "correct": 6, "total": 10, "draws": 3,
        "mean_of_draws": pytest.approx(200 / 3), "correct_of_draws": [3, 2, 1], "images_of_draws": [4, 2, 4],
    }  # fmt: skip
    assert draws_metrics([np.array([True])])["standard_error"] is None
