"""The data sets of several domains on drawn folders and lists: layouts, splits, labels, domains, names, refusals.

Those of domain generalisation hold train, val and test; those of domain adaptation (row 9.2) train_u in place of val.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dassl.data.datasets import (
    DATASET_REGISTRY,
    PACS,
    VLCS,
    DigitsDG,
    DomainNet,
    Office31,
    OfficeHome,
    OfficeHomeDG,
    VisDA17,
    build_dataset,
    miniDomainNet,
)

GENERALISATION, ADAPTATION = (
    (PACS, VLCS, DigitsDG, OfficeHomeDG),
    (OfficeHome, Office31, VisDA17, DomainNet, miniDomainNet),
)


@pytest.fixture(autouse=True)
def own_loaders(monkeypatch):
    """The toolbox's own loaders under their names, also where a plugin has put others in their place."""
    for loader in GENERALISATION + ADAPTATION:
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, loader.__name__, loader)


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def facts(items, root: Path) -> list[tuple]:
    return [(Path(i.impath).relative_to(root).as_posix(), i.label, i.domain, i.classname) for i in items]


@pytest.fixture
def build(make_cfg, tmp_path):
    def make(name: str, sources: tuple, targets: tuple):
        cfg = make_cfg("DATASET.ROOT", str(tmp_path), "DATASET.NAME", name, "VERBOSE", False)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = sources, targets
        return build_dataset(cfg)

    return make


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


@pytest.mark.parametrize(("name", "folder", "domains"), [
    ("OfficeHome", "office_home", ("art", "product", "real_world")),
    ("Office31", "office31", ("amazon", "dslr", "webcam")),
])  # fmt: skip
@pytest.mark.parametrize("written", [str, lambda name: name.replace("_", " ").title()])
def test_9_2_domain_folders(build, tmp_path, name, folder, domains, written):
    root = tmp_path / folder
    for domain in map(written, domains):
        for label in ("Alarm_Clock", "TV", "Table"):
            draw(root / domain / label / "00001.jpg")
        (root / domain / "TV" / "Thumbs.db").touch()
    (root / written(domains[0]) / "empty").mkdir()
    dataset = build(name, domains[1::-1], domains[2:])
    first, second, third = (written(domains[place]) for place in (1, 0, 2))
    assert facts(dataset.train_x, root) == [
        (f"{domain}/{label}/00001.jpg", number, place, label.lower())
        for place, domain in enumerate((first, second))
        for number, label in enumerate(("Alarm_Clock", "TV", "Table"))  # TV before Table, as upper case sorts
    ]
    target = [
        (f"{third}/{label}/00001.jpg", number, 0, label.lower())
        for number, label in enumerate(("Alarm_Clock", "TV", "Table"))
    ]
    assert facts(dataset.train_u, root) == facts(dataset.test, root) == target
    assert dataset.val is None and dataset.classnames == ["alarm_clock", "tv", "table"]


def test_9_2_a_class_that_one_domain_lacks_moves_no_label(build, tmp_path):
    for domain, classes in (("art", ("Bed", "Couch", "Fan")), ("clipart", ("Bed", "Fan"))):
        for label in classes:
            draw(tmp_path / "office_home" / domain / label / "1.jpg")
            draw(*(tmp_path / "office_home_dg" / domain / split / label / "1.jpg" for split in ("train", "val")))
    for name in ("OfficeHome", "OfficeHomeDG"):
        dataset = build(name, ("art",), ("clipart",))
        assert {item.classname: item.label for item in dataset.test} == {"bed": 0, "fan": 2}
        assert dataset.lab2cname == {0: "bed", 1: "couch", 2: "fan"}


@pytest.mark.parametrize(("name", "splits"), [("DomainNet", "splits"), ("miniDomainNet", "splits_mini")])
def test_9_2_domain_lists(build, tmp_path, name, splits):
    root = tmp_path / "domainnet"
    for domain in ("real", "sketch", "clipart"):
        for part in ("train", "test"):
            paths = [f"{domain}/teddy-bear/{part} 1.jpg", f"{domain}/The_Eiffel_Tower/{part}.jpg"]
            draw(*(root / path for path in paths))
            (root / splits).mkdir(exist_ok=True)
            lines = [f"{path} {label}\n" for label, path in enumerate(paths)]
            (root / splits / f"{domain}_{part}.txt").write_text("".join(lines))
    dataset = build(name, ("sketch", "clipart"), ("real",))
    assert facts(dataset.train_x, root) == [
        ("sketch/teddy-bear/train 1.jpg", 0, 0, "teddy-bear"),
        ("sketch/The_Eiffel_Tower/train.jpg", 1, 0, "The_Eiffel_Tower"),
        ("clipart/teddy-bear/train 1.jpg", 0, 1, "teddy-bear"),
        ("clipart/The_Eiffel_Tower/train.jpg", 1, 1, "The_Eiffel_Tower"),
    ]
    assert [item[0] for item in facts(dataset.train_u, root)] == [
        "real/teddy-bear/train 1.jpg", "real/The_Eiffel_Tower/train.jpg"
    ]  # fmt: skip
    assert [item[0] for item in facts(dataset.test, root)] == [
        "real/teddy-bear/test 1.jpg", "real/The_Eiffel_Tower/test.jpg"
    ]  # fmt: skip
    val = dataset.val and [item[0].split("/")[0] for item in facts(dataset.val, root)]
    assert val == (["sketch"] * 2 + ["clipart"] * 2 if name == "DomainNet" else None)
    (root / splits / "real_train.txt").write_text("real/x/y.jpg one\n")
    with pytest.raises(ValueError, match=r'real_train\.txt": expected "class/image label".*real/x/y\.jpg one'):
        build(name, ("sketch",), ("real",))
    (root / splits / "real_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="real_train"):
        build(name, ("sketch",), ("real",))


def test_9_2_visda(build, tmp_path):
    root = tmp_path / "visda17"
    for folder, path in (("train", "aeroplane/src_1.png"), ("train", "bicycle/src_2.png"),
                         ("validation", "bicycle/trg_1.jpg"), ("validation", "aeroplane/trg_2.jpg")):  # fmt: skip
        draw(root / folder / path)
        with open(root / folder / "image_list.txt", "a") as file:
            file.write(f"{path} {int(path.startswith('bicycle'))}\n")
    dataset = build("VisDA17", ("synthetic",), ("real",))
    assert facts(dataset.train_x, root) == [
        ("train/aeroplane/src_1.png", 0, 0, "aeroplane"), ("train/bicycle/src_2.png", 1, 0, "bicycle")
    ]  # fmt: skip
    target = [("validation/bicycle/trg_1.jpg", 1, 0, "bicycle"), ("validation/aeroplane/trg_2.jpg", 0, 0, "aeroplane")]
    assert facts(dataset.train_u, root) == facts(dataset.test, root) == target and dataset.val is None


@pytest.mark.parametrize("loader", GENERALISATION + ADAPTATION)
def test_9_2_missing_folder_and_wrong_domain(build, tmp_path, loader, monkeypatch):
    name, folder, fetched = loader.__name__, loader.dataset_dir, loader in GENERALISATION
    if fetched:
        monkeypatch.delenv("DASSL_DOWNLOAD", raising=False)
    else:
        monkeypatch.setenv("DASSL_DOWNLOAD", "1")  # these are not fetched all the same
    with pytest.raises(FileNotFoundError, match=f"{folder}.*does not exist. Fetch https://") as caught:
        build(name, ("art",), ("art",))
    assert ("DASSL_DOWNLOAD" in str(caught.value)) == ("drive.google.com" in str(caught.value)) == fetched
    (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="mars"):
        build(name, ("mars",), ("mars",))
    with pytest.raises(AssertionError, match="source_domains"):
        build(name, (), ("mars",))
    with pytest.raises(FileNotFoundError, match=folder):
        build(name, loader.domains[:1], loader.domains[1:2])


def test_9_2_names_stand_beside_those_of_the_plugin():
    code = (
        "import dassl_clip.datasets\n"
        "from dassl.data.datasets import OfficeHome, VisDA17, miniDomainNet, DomainNet, DATASET_REGISTRY\n"
        "from dassl.data.datasets.da import Office31\n"
        "print(*(cls.__module__ for cls in (OfficeHome, VisDA17, miniDomainNet, DomainNet, Office31)))\n"
        "print(*(DATASET_REGISTRY.get(name).__module__ for name in ('OfficeHome', 'VisDA17')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = (line.split() for line in done.stdout.splitlines())
    names = ("office_home", "visda17", "mini_domainnet", "domainnet", "office31")
    assert first == [f"dassl.data.datasets.da.{name}" for name in names]
    assert second == ["dassl_clip.datasets.domain_sets", "dassl_clip.datasets.folder_sets"]
