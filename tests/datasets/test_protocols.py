"""DATASET.PROTOCOL: which images are tested under each name, and what does not go together.

Covers: all-images (every part of the target, whatever the layout; sources that are targets too; the text of the
record), holdout (80/20 of each class, the same draw whatever the layout), the default being `dassl`, words that are no
protocol, VLCS_TEST beside a protocol, Icons' fixed parts, data sets without domains.
"""

from collections import Counter
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, VLCS, DomainNet, Icons, ImageNet
from dassl_clip.results.run_data import data_of


def paths(items):
    return sorted(item.impath for item in items or [])


@pytest.mark.parametrize("layout", ["pacs/images", "PACS"])
def test_all_images_of_the_target(layout, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, layout)
    data = PACS(config(root, ["photo"], ["sketch", "cartoon"], PROTOCOL="all-images"))
    every = [str(path) for name in ("sketch", "cartoon") for path in (root / layout / name).rglob("*.*")]
    assert paths(data.test) == sorted(every) and len(every) == 140
    plain = PACS(config(root, ["photo"], ["sketch"]))
    assert (paths(data.train_x), paths(data.val)) == (paths(plain.train_x), paths(plain.val))


def test_all_images_where_lists_or_folders_part_them(tmp_path, vlcs_tree, domainnet_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    assert len(VLCS(config(root, ["caltech"], ["sun"], PROTOCOL="all-images")).test) == 5 * (5 + 2 + 3)
    assert len(VLCS(config(root, ["caltech"], ["sun"])).test) == 5 * 3
    domainnet_tree(tmp_path, "domainnet", ["clipart", "real"], "splits")
    assert len(DomainNet(config(tmp_path, ["clipart"], ["real"], PROTOCOL="all-images")).test) == 690


@pytest.mark.parametrize("shots", [-1, 3])
def test_all_images_of_a_domain_that_trains_too(shots, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    data = PACS(config(root, ["photo"], ["photo"], PROTOCOL="all-images", NUM_SHOTS=shots))
    every = sorted(str(path) for path in (root / "pacs/images/photo").rglob("*.jpg"))
    assert paths(data.test) == every
    if shots < 0:
        assert paths(data.train_x) == every and data.val is None
    else:
        assert Counter(item.label for item in data.train_x) == dict.fromkeys(range(7), 3)
        assert not {*paths(data.train_x)} & {*paths(data.val)}
    assert "tested too, so nothing may be trained on their labels" in data.protocol
    assert "protocol all-images" in data.protocol
    other = PACS(config(pacs_tree(tmp_path / "b", "PACS"), ["P"], ["P"], PROTOCOL="all-images", NUM_SHOTS=shots))
    names = [[Path(p).parts[-3:] for p in paths(found.train_x)] for found in (data, other)]
    assert names[0] == names[1]  # with and without split lists


def test_holdout_is_one_draw_in_every_layout(tmp_path, pacs_tree, config):
    drawn = {}
    for layout in ("pacs/images", "PACS"):
        root = pacs_tree(tmp_path / layout, layout)
        data = PACS(config(root, ["photo", "cartoon"], ["sketch"], PROTOCOL="holdout", SEED=5))
        assert Counter(item.label for item in data.val) == dict.fromkeys(range(7), 2 * 2)
        assert (len(data.train_x), len(data.test)) == (2 * 7 * 8, 70)
        assert "a fifth of each class held out by seed 5" in data.protocol
        drawn[layout] = [Path(path).parts[-3:] for path in paths(data.val)]
    assert drawn["pacs/images"] == drawn["PACS"]
    assert [Path(p).parts[-3:] for p in paths(PACS(config(root, ["P", "C"], ["S"], SEED=5)).val)] == drawn["PACS"]


def test_holdout_inside_a_domain(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    data = VLCS(config(root, ["sun"], ["sun"], PROTOCOL="holdout"))
    lists = [paths(data.train_x), paths(data.val), paths(data.test)]
    assert [len(found) for found in lists] == [5 * 7, 5 * 1, 5 * 2]
    assert len({path for found in lists for path in found}) == 5 * 10


def test_dassl_is_the_default(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    first, second = (PACS(config(root, ["P"], ["S"], **more)) for more in ({}, {"PROTOCOL": "dassl"}))
    assert data_of(first).fingerprint == data_of(second).fingerprint
    assert "; protocol dassl; " in PACS(config(root, ["P"], ["S"])).protocol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"PROTOCOL": "all images"}, r'PROTOCOL is "all images"; it must be one of .* Did you mean .all-images'),
        ({"PROTOCOL": "holdout", "VLCS_TEST": "full+test"}, r"full\+test chooses among the parts of Dassl's release"),
    ],
)
def test_what_does_not_go_together(options, message, tmp_path, vlcs_tree, config):
    with pytest.raises(ValueError, match=message):
        VLCS(config(vlcs_tree(tmp_path, "dassl"), ["sun"], ["caltech"], **options))


def test_vlcs_test_inside_a_domain(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    with pytest.raises(ValueError, match=r"full\+test would test the images of sun that are trained on.*all-images"):
        VLCS(config(root, ["sun"], ["sun"], VLCS_TEST="full+test"))
    assert len(VLCS(config(root, ["sun"], ["sun"], VLCS_TEST="full+test", PROTOCOL="all-images")).test) == 50


def test_icons_have_fixed_parts(config):
    with pytest.raises(ValueError, match=r"PROTOCOL holdout does not go with Icons, whose parts are fixed"):
        Icons(config("", ["flat"], ["flat"], PROTOCOL="holdout"))
    whole = Icons(config("", ["flat"], ["flat"], PROTOCOL="all-images"))
    assert paths(whole.test) == paths(Icons(config("", ["line"], ["flat"])).test)


def test_a_split_file_where_none_is_read(tmp_path, pacs_tree, config):
    with pytest.raises(ValueError, match=r"SPLIT_FILE is mine.json, but PACS reads no split file: leave it empty"):
        PACS(config(pacs_tree(tmp_path), ["P"], ["S"], SPLIT_FILE="mine.json"))


def test_what_is_trained_on_and_tested_is_told(tmp_path, pacs_tree, imagenet_tree, config):
    root = pacs_tree(tmp_path)
    assert PACS(config(root, ["P"], ["P"], PROTOCOL="all-images")).train_overlaps_test
    assert not PACS(config(root, ["P"], ["S"], PROTOCOL="all-images")).train_overlaps_test
    assert not PACS(config(root, ["P"], ["P"])).train_overlaps_test
    assert ImageNet(config(imagenet_tree(tmp_path, "imagenet", {"val": 1}), [], [])).train_overlaps_test


def test_holdout_needs_training_images(tmp_path, imagenet_tree, config):
    root = imagenet_tree(tmp_path, "imagenet/images", {"val": 1})
    with pytest.raises(ValueError, match="holdout holds out a part of the training images, but ImageNet has only test"):
        ImageNet(config(root, [], [], PROTOCOL="holdout"))
    assert len(ImageNet(config(root, [], [], PROTOCOL="all-images")).test) == 1000
