"""Which images train, validate and test.

Covers: leave one domain out and few-shot inside a domain for every data set and layout (train, val and test disjoint,
the tested part of a domain that is also a source, the remainder of training as validation), a target among several
sources, hold-out (a fifth of each class, by seed, unmoved by other classes), fingerprint and the text of the
protocol.
"""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, VLCS, DomainNet, FolderDomains, OfficeHome, OfficeHomeDG
from dassl_clip.results.run_data import data_of

CASES = {
    "PACS with lists": (PACS, "photo", "sketch"),
    "PACS without": (PACS, "photo", "sketch"),
    "VLCS Dassl": (VLCS, "caltech", "sun"),
    "VLCS names": (VLCS, "caltech", "sun"),
    "OfficeHome": (OfficeHome, "art", "product"),
    "OfficeHomeDG": (OfficeHomeDG, "art", "product"),
    "DomainNet with lists": (DomainNet, "clipart", "real"),
    "DomainNet without": (DomainNet, "clipart", "real"),
    "FolderDomains": (FolderDomains, "photo", "sketch"),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory, pacs_tree, vlcs_tree, office_home_tree, domainnet_tree):
    """A data set on disk: (root, loader, source, target)."""
    loader, source, target = CASES[request.param]
    name, tmp_path = request.param, tmp_path_factory.mktemp("case")
    if name.startswith("PACS"):
        root = pacs_tree(tmp_path, "pacs/images" if "with lists" in name else "PACS")
    elif name.startswith("VLCS"):
        root = vlcs_tree(tmp_path, "dassl" if "Dassl" in name else "names")
    elif name.startswith("Office"):
        parts = ("train", "val") if name == "OfficeHomeDG" else ("",)
        root = office_home_tree(tmp_path, "office_home", [source, target], parts, size=4)
    elif name.startswith("DomainNet"):
        root = domainnet_tree(tmp_path, "domainnet", [source, target], "splits" if "with lists" in name else "", size=4)
    else:
        root = pacs_tree(tmp_path, ".")
    return root, loader, source, target


def paths(items) -> set[str]:
    listed = [item.impath for item in items or []]
    assert len(set(listed)) == len(listed)
    return set(listed)


@pytest.mark.parametrize("shots", [-1, 2])
def test_parts_are_disjoint(case, shots, config):
    root, loader, source, target = case
    for targets in ([target], [source], [source, target]):
        data = loader(config(root, [source], targets, NUM_SHOTS=shots))
        train, val, test = paths(data.train_x), paths(data.val), paths(data.test)
        assert train and val and test
        assert not train & val and not train & test and not val & test


def test_few_shot_inside_a_domain_tests_what_no_seed_can_train_on(case, config):
    root, loader, source, _ = case
    trained, tested = set(), None
    for seed in range(6):
        data = loader(config(root, [source], [source], NUM_SHOTS=2, SEED=seed, SPLIT_SEED=-1))
        seen = paths(data.train_x) | paths(data.val)
        assert not seen & paths(data.test)
        if "seed" not in data.layout.text:  # published splits: the test is one and the same
            assert tested in (None, paths(data.test))
            tested = paths(data.test)
            trained |= seen
    assert not trained & (tested or set())


def test_all_images_inside_a_domain(case, config):
    root, loader, source, target = case
    inside = loader(config(root, [source], [source]))
    outside = loader(config(root, [target], [source]))
    assert paths(inside.test) <= paths(outside.test) or "test list" in inside.protocol
    classes = set(range(inside.num_classes))
    for items in (inside.train_x, inside.val, inside.test):
        assert {item.label for item in items} == classes


def test_whole_target_where_the_protocol_says_so(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    inside = PACS(config(root, ["photo"], ["photo"]))
    outside = PACS(config(root, ["sketch"], ["photo"]))
    crossval = {
        line.rsplit(" ")[0] for line in (root / "pacs/splits/photo_crossval_kfold.txt").read_text().splitlines()
    }
    assert {str(Path(path).relative_to(root / "pacs/images")) for path in paths(inside.test)} == crossval
    assert paths(outside.test) == {str(path) for path in (root / "pacs/images/photo").rglob("*.jpg")}
    assert paths(inside.train_x) | paths(inside.val) | paths(inside.test) == paths(outside.test)


def test_a_target_among_several_sources(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    data = PACS(config(root, ["photo", "sketch"], ["sketch", "cartoon"]))
    count = Counter(Path(item.impath).parents[1].name for item in data.test)
    assert count == {"sketch": 7, "cartoon": 70}
    assert {Path(item.impath).stem for item in data.test if "sketch" in item.impath} == {"pic_009"}
    assert {item.domain for item in data.test if "sketch" in item.impath} == {0}
    assert {item.domain for item in data.train_x if "sketch" in item.impath} == {1}
    photos = {Path(item.impath).stem for item in data.val if "photo" in item.impath}
    assert photos == {"pic_009"}
    assert "val: crossval list of photo, train list of sketch without the images trained on" in data.protocol
    assert "test: crossval list of sketch, train list + crossval list of cartoon" in data.protocol


def test_holdout_follows_the_seed_and_the_class_alone(tmp_path, pacs_tree, draw, config):
    root = pacs_tree(tmp_path, "PACS", size=14)
    held = {seed: paths(PACS(config(root, ["photo"], ["sketch"], SEED=seed)).val) for seed in range(4)}
    assert len(set(map(frozenset, held.values()))) == 4
    for val in held.values():
        assert Counter(Path(path).parent.name for path in val) == dict.fromkeys(
            ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"], 2
        )
    assert paths(PACS(config(root, ["photo"], ["sketch"], SEED=7, SPLIT_SEED=2)).val) == held[2]
    assert paths(PACS(config(root, ["photo"], ["sketch"], SEED=-1)).val) == held[0]
    assert paths(PACS(config(root, ["cartoon", "photo"], ["sketch"], SEED=3)).val) >= held[3]
    cartoons = paths(PACS(config(root, ["cartoon"], ["sketch"], SEED=3)).val)
    assert {path.replace("cartoon", "photo") for path in cartoons} != held[3]
    draw(root / "PACS/photo/dog/zzz.jpg")
    after = paths(PACS(config(root, ["photo"], ["sketch"], SEED=1)).val)
    assert {path for path in after if "/dog/" not in path} == {path for path in held[1] if "/dog/" not in path}


def test_single_image_of_a_class_trains(tmp_path, draw, config):
    for domain in ("a", "b"):
        draw(tmp_path / domain / "one" / "1.png")
        for number in range(3):
            draw(tmp_path / domain / "few" / f"{number}.png")
    data = FolderDomains(config(tmp_path, ["a"], ["b"]))
    assert Counter(item.classname for item in data.train_x) == {"one": 1, "few": 2}
    assert Counter(item.classname for item in data.val) == {"few": 1}
    assert Counter(item.classname for item in data.test) == {"one": 1, "few": 3}


def test_the_data_of_a_run(tmp_path, pacs_tree, config):
    """What a run's fingerprint is made of: canonical names, labels and parts, wherever the folder lies."""
    root = pacs_tree(tmp_path)
    data = PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=2))
    expected = [
        (part, item.label, str(Path(item.impath).relative_to(root / "pacs/images")))
        for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test))
        for item in items
    ]
    found = data_of(data)
    assert [(image.part, image.label, image.path) for image in found.images] == sorted(expected)
    pool = [path for domain in ("photo", "sketch") for path in (root / "pacs/images" / domain).rglob("*.*")]
    skipped = {"sketch/dog/n02103406_4068-1.png"}
    lines = [f"{path.relative_to(root / 'pacs/images')}\t{data.classnames.index(path.parent.name)}\n"
             for path in pool if str(path.relative_to(root / "pacs/images")) not in skipped]  # fmt: skip
    assert data.listing == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    other = PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=2, SEED=2))
    assert data_of(other).fingerprint != found.fingerprint and other.listing == data.listing
    moved = tmp_path / "elsewhere"
    (root / "pacs").rename(moved)
    assert data_of(PACS(config(moved, ["P"], ["S"], NUM_SHOTS=2))).fingerprint == found.fingerprint


def test_protocol_text(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    text = VLCS(config(root, ["caltech", "sun"], ["pascal"], NUM_SHOTS=2, SUBSAMPLE_CLASSES="base", SEED=5)).protocol
    assert text.startswith(f"VLCS: domain/train|crossval|test/class folders in {root / 'VLCS'}")
    for part in (
        "train: train of caltech, sun;",
        "val: crossval of caltech, sun;",
        "test: test of pascal;",
        "2 shots per class (val: 2);",
        "split seed 5;",
        "classes: base (3)",
    ):
        assert part in text
