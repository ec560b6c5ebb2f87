"""The DG data sets on drawn folders: layouts, splits, labels, domains, names, a damaged entry, missing folders."""

from pathlib import Path

import pytest
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, PACS, VLCS, DigitsDG, OfficeHomeDG, build_dataset


@pytest.fixture(autouse=True)
def own_loaders(monkeypatch):
    """The toolbox's own loaders under their names, also where a plugin has put others in their place."""
    for loader in (PACS, VLCS, DigitsDG, OfficeHomeDG):
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, loader.__name__, loader)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def build(make_cfg, tmp_path):
    def make(name: str, sources: tuple, targets: tuple):
        cfg = make_cfg("DATASET.ROOT", str(tmp_path), "DATASET.NAME", name, "VERBOSE", False)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = sources, targets
        return build_dataset(cfg)

    return make


def facts(items, root: Path) -> list[tuple]:
    return [(str(Path(i.impath).relative_to(root)), i.label, i.domain, i.classname) for i in items]


def test_pacs(build, tmp_path):
    root = tmp_path / "pacs"
    entries = {
        "art_painting_train": [("art_painting/dog/a.jpg", 1), ("art_painting/elephant/b.jpg", 2)],
        "art_painting_crossval": [("art_painting/dog/with blank.jpg", 1)],
        "sketch_train": [
            ("sketch/dog/n02103406_4068-1.png", 1),
            ("sketch/elephant/n02103406_4068-10.png", 2),
            ("sketch/dog/d.png", 1),
        ],
        "sketch_crossval": [("sketch/elephant/e.png", 2)],
    }  # fmt: skip
    for name, lines in entries.items():
        (root / "splits").mkdir(parents=True, exist_ok=True)
        (root / "splits" / f"{name}_kfold.txt").write_text("".join(f"{path} {label}\n" for path, label in lines))
        for path, _ in lines:
            draw(root / "images" / path)
    dataset = build("PACS", ("sketch", "art_painting"), ("sketch",))
    images = root / "images"
    assert facts(dataset.train_x, images) == [
        ("sketch/elephant/n02103406_4068-10.png", 1, 0, "elephant"),
        ("sketch/dog/d.png", 0, 0, "dog"),
        ("art_painting/dog/a.jpg", 0, 1, "dog"),
        ("art_painting/elephant/b.jpg", 1, 1, "elephant"),
    ]
    assert facts(dataset.val, images) == [
        ("sketch/elephant/e.png", 1, 0, "elephant"),
        ("art_painting/dog/with blank.jpg", 0, 1, "dog"),
    ]
    assert [Path(item.impath).name for item in dataset.test] == ["n02103406_4068-10.png", "d.png", "e.png"]
    assert dataset.classnames == ["dog", "elephant"]
    (root / "splits" / "sketch_train_kfold.txt").write_text("sketch/dog/d.png 0\n")
    with pytest.raises(ValueError, match="label from 1"):
        build("PACS", ("sketch",), ("sketch",))
    (root / "splits" / "sketch_train_kfold.txt").unlink()
    with pytest.raises(FileNotFoundError, match="sketch_train_kfold"):
        build("PACS", ("sketch",), ("sketch",))


@pytest.mark.parametrize(("name", "folder", "domains"), [
    ("DigitsDG", "digits_dg", ("mnist_m", "syn")),
    ("OfficeHomeDG", "office_home_dg", ("real_world", "art")),
])  # fmt: skip
def test_train_and_val_folders(build, tmp_path, name, folder, domains):
    for domain in domains:
        for split in ("train", "val"):
            for label in ("Zebra", "Alarm_Clock"):
                draw(tmp_path / folder / domain / split / label / f"{split}.JPG")
                (tmp_path / folder / domain / split / label / "Thumbs.db").touch()
    dataset = build(name, domains[:1], domains[1:])
    root = tmp_path / folder
    assert facts(dataset.train_x, root) == [
        (f"{domains[0]}/train/Alarm_Clock/train.JPG", 0, 0, "alarm_clock"),
        (f"{domains[0]}/train/Zebra/train.JPG", 1, 0, "zebra"),
    ]
    assert [item[0] for item in facts(dataset.val, root)] == [
        f"{domains[0]}/val/Alarm_Clock/val.JPG", f"{domains[0]}/val/Zebra/val.JPG"
    ]  # fmt: skip
    assert [item[0].split("/")[:2] for item in facts(dataset.test, root)] == [[domains[1], "train"]] * 2 + [
        [domains[1], "val"]
    ] * 2


def test_vlcs(build, tmp_path):
    for domain in ("CALTECH", "SUN"):
        for split in ("train", "crossval", "test", "full"):
            for label in range(5):
                draw(tmp_path / "VLCS" / domain / split / str(label) / f"{split}_imgs_1.jpg")
    dataset = build("VLCS", ("caltech",), ("sun",))
    root = tmp_path / "VLCS"
    assert [item[:3] for item in facts(dataset.test, root)] == [
        (f"SUN/test/{n}/test_imgs_1.jpg", n, 0) for n in range(5)
    ]
    assert [item[0] for item in facts(dataset.val, root)] == [
        f"CALTECH/crossval/{n}/crossval_imgs_1.jpg" for n in range(5)
    ]
    assert len(dataset.train_x) == 5
    assert dataset.classnames == ["bird", "car", "chair", "dog", "person"]


@pytest.mark.parametrize("name", ["PACS", "VLCS", "DigitsDG", "OfficeHomeDG"])
def test_missing_folder_and_wrong_domain(build, tmp_path, name, monkeypatch):
    monkeypatch.delenv("DASSL_DOWNLOAD", raising=False)
    folder = {"PACS": "pacs", "VLCS": "VLCS", "DigitsDG": "digits_dg", "OfficeHomeDG": "office_home_dg"}[name]
    with pytest.raises(FileNotFoundError, match=f"{folder}.*drive.google.com.*DASSL_DOWNLOAD"):
        build(name, ("art",), ("art",))
    (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="mars"):
        build(name, ("mars",), ("mars",))
    with pytest.raises(AssertionError, match="source_domains"):
        build(name, (), ("mars",))
