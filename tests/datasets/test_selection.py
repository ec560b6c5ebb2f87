"""Few-shot draw and class subsets.

Covers: the draw against a rewriting of Dassl's rule with the global generator (train, then validation, whole lists in
the order of their files), the order draw-then-subset, SPLIT_SEED, unseeded runs, classes with too few images, base
and new.
"""

import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, VLCS, FolderDomains

PACS_CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]


def dassl_draw(items, shots):
    """Dassl's rule on (path, label) pairs, with the global generator."""
    groups = {}
    for path, label in items:
        groups.setdefault(label, []).append(path)
    chosen = []
    for group in groups.values():
        chosen.extend(random.sample(group, shots) if len(group) >= shots else group)
    return chosen


def read(root, domains, part):
    """(path, label) of the published lists, in their order."""
    pairs = []
    for domain in domains:
        for line in (root / f"pacs/splits/{domain}_{part}_kfold.txt").read_text().splitlines():
            path, label = line.split(" ")
            pairs.append((str(root / "pacs/images" / path), int(label) - 1))
    return pairs


def files(items):
    return [item.impath for item in items]


@pytest.mark.parametrize("sources", [["photo"], ["photo", "cartoon", "art_painting"]])
def test_draw_equals_dassl(sources, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    for seed in range(3):
        for shots in (1, 2, 4, 9, 9 * len(sources)):
            random.seed(seed)
            train = dassl_draw(read(root, sources, "train"), shots)
            val = dassl_draw(read(root, sources, "crossval"), min(shots, 4))
            data = PACS(config(root, sources, ["sketch"], NUM_SHOTS=shots, SEED=seed))
            assert files(data.train_x) == train
            assert files(data.val) == val
            assert len(data.test) == 70


def test_draw_equals_dassl_from_sorted_folders(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl", (("train", 12), ("crossval", 11), ("test", 1)))
    pairs = {}
    for part, size in (("train", 12), ("crossval", 11)):
        names = sorted(f"{part}_imgs_{number}.jpg" for number in range(size))
        pairs[part] = [(str(root / f"VLCS/SUN/{part}/{label}/{name}"), label) for label in range(5) for name in names]
    random.seed(3)
    train, val = dassl_draw(pairs["train"], 8), dassl_draw(pairs["crossval"], 4)
    data = VLCS(config(root, ["sun"], ["caltech"], NUM_SHOTS=8, SEED=3))
    assert (files(data.train_x), files(data.val)) == (train, val)


def test_draw_inside_a_domain(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    pairs = read(root, ["photo"], "train")
    random.seed(1)
    train = dassl_draw(pairs, 4)
    val = dassl_draw([pair for pair in pairs if pair[0] not in train], 4)
    data = PACS(config(root, ["photo"], ["photo"], NUM_SHOTS=4))
    assert (files(data.train_x), files(data.val)) == (train, val)
    assert sorted(files(data.test)) == sorted(path for path, _ in read(root, ["photo"], "crossval"))


def test_global_generator_is_neither_read_nor_moved(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    options = config(root, ["photo"], ["sketch"], NUM_SHOTS=3)
    random.seed(99)
    state = random.getstate()
    first = files(PACS(options).train_x)
    assert random.getstate() == state
    random.seed(100)
    assert files(PACS(options).train_x) == first


def test_split_seed_stands_before_seed(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)

    def draw(**seeds):
        return files(PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=3, **seeds)).train_x)

    assert draw(SEED=1, SPLIT_SEED=2) == draw(SEED=2) != draw(SEED=1)
    assert draw(SEED=1, SPLIT_SEED=0) == draw(SEED=0)
    assert draw(SEED=1, SPLIT_SEED=-1) == draw(SEED=1)


def test_unseeded_draws_differ_and_say_so(tmp_path, pacs_tree, config, caplog):
    options = config(pacs_tree(tmp_path), ["photo"], ["sketch"], NUM_SHOTS=4, SEED=-1)
    with caplog.at_level(logging.WARNING):
        draws = {tuple(files(PACS(options).train_x)) for _ in range(4)}
    assert len(draws) > 1
    assert "SEED and SPLIT_SEED are negative" in caplog.text
    assert "unseeded" in PACS(options).protocol


def test_classes_with_too_few_images_are_named(tmp_path, pacs_tree, config, caplog):
    root = pacs_tree(tmp_path, "PACS", size=10)
    for number in range(4, 10):
        (root / f"PACS/photo/guitar/pic_{number:03d}.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        data = PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=8))
    count = Counter(item.classname for item in data.train_x)
    assert count == {name: 3 if name == "guitar" else 8 for name in PACS_CLASSES}
    lines = [record.getMessage() for record in caplog.records if "fewer than" in record.getMessage()]
    assert len(lines) == 1
    assert "1 of 7 classes have fewer than 8 training images, all of which are used: guitar 3" in lines[0]


def test_more_shots_than_any_class_has(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS", size=10)
    with pytest.raises(ValueError, match=r"NUM_SHOTS is 9, but no class of PACS has more than 8 training images"):
        PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=9))


@pytest.mark.parametrize(("subset", "first", "names"), [("base", 0, PACS_CLASSES[:4]), ("new", 4, PACS_CLASSES[4:])])
def test_base_and_new(subset, first, names, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    whole = PACS(config(root, ["photo", "cartoon"], ["sketch"], NUM_SHOTS=3))
    half = PACS(config(root, ["photo", "cartoon"], ["sketch"], NUM_SHOTS=3, SUBSAMPLE_CLASSES=subset))
    assert half.classnames == names
    assert half.lab2cname == dict(enumerate(names)) and half.num_classes == len(names)
    for part in ("train_x", "val", "test"):
        expected = [
            (item.impath, item.label - first, item.domain, item.classname)
            for item in getattr(whole, part)
            if item.classname in names
        ]
        got = [(item.impath, item.label, item.domain, item.classname) for item in getattr(half, part)]
        assert got == expected and got


def test_subset_of_an_odd_list_and_of_one_class(tmp_path, draw, config):
    for domain in ("a", "b"):
        for name in ("x", "y", "z"):
            draw(tmp_path / "three" / domain / name / "1.png")
        draw(tmp_path / "one" / domain / "x" / "1.png")
    base = FolderDomains(config(tmp_path / "three", ["a"], ["b"], SUBSAMPLE_CLASSES="base"))
    assert base.classnames == ["x", "y"]
    with pytest.raises(ValueError, match=r'"new", which leaves none of the 1 classes'):
        FolderDomains(config(tmp_path / "one", ["a"], ["b"], SUBSAMPLE_CLASSES="new"))


def test_unknown_subset(tmp_path, pacs_tree, config):
    with pytest.raises(ValueError, match=r'"bases"; it must be one of all, base, new. Did you mean .base.'):
        PACS(config(pacs_tree(tmp_path), ["photo"], ["sketch"], SUBSAMPLE_CLASSES="bases"))


def test_loader_works_without_the_keys_of_the_plugin(tmp_path, pacs_tree):
    """Programs that do not call `add_config` get the defaults."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.DATASET.ROOT = 1, 2, str(pacs_tree(tmp_path))
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = ["photo"], ["sketch"]
    data = PACS(cfg)
    assert (len(data.train_x), data.num_classes) == (14, 7)
    assert {Path(item.impath).parents[1].name for item in data.train_x} == {"photo"}
