"""Every layout of every data set loads with the right classes, labels, domains and parts.

Covers: PACS (seven places of its folder, published lists counted from 0 and 1, absolute paths, the damaged image),
VLCS (both releases, numbers, test and full+test), OfficeHome (six spellings of Real World), OfficeHomeDG (with and
without numbers before the class), DomainNet (places of the folder and of the lists, label order against the numbers
in the file names, a class that training lacks), file endings, disk order, letter case of folders.
"""

import logging
import os
import re
import warnings
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, VLCS, DomainNet, OfficeHome, OfficeHomeDG
from dassl_clip.results.run_data import data_of

PACS_CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
VLCS_CLASSES = ["bird", "car", "chair", "dog", "person"]
LISTED = {"pacs/images", "PACS/images", "lists/absolute", "lists/image_list"}


def files(items) -> list[str]:
    return [item.impath for item in items]


@pytest.mark.parametrize("layout", [*sorted(LISTED), "PACS", "kfold", "PACS/kfold", "pacs_data", "pacs/kfold"])
def test_pacs(layout, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path / "data", layout)
    data = PACS(config(root, ["photo", "art_painting"], ["sketch"]))
    own = next(path for path in root.iterdir() if path.is_dir())  # DATASET.ROOT may be the data set's own folder
    assert data_of(PACS(config(own, ["photo", "art_painting"], ["sketch"]))).fingerprint == data_of(data).fingerprint
    assert data.classnames == PACS_CLASSES
    assert data.num_classes == 7
    assert (data.source_domains, data.target_domains) == (["photo", "art_painting"], ["sketch"])
    held = 1 if layout in LISTED else 2
    assert (len(data.train_x), len(data.val), len(data.test)) == (2 * 7 * (10 - held), 2 * 7 * held, 70)
    for items, domains in ((data.train_x + data.val, ["photo", "art_painting"]), (data.test, ["sketch"])):
        for item in items:
            path = Path(item.impath)
            assert item.classname == path.parent.name == PACS_CLASSES[item.label]
            assert path.parent.parent.name == domains[item.domain]
    if layout in LISTED:
        assert {Path(path).stem for path in files(data.val)} == {"pic_009"}
        assert "split lists" in data.protocol
    else:
        assert "no split lists" in data.protocol


def test_pacs_keeps_the_order_of_the_lists(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    data = PACS(config(root, ["photo"], ["sketch"]))
    lines = (root / "pacs/splits/photo_train_kfold.txt").read_text().splitlines()
    assert files(data.train_x) == [str(root / "pacs/images" / line.rsplit(" ", 1)[0]) for line in lines]
    assert [item.label + 1 for item in data.train_x] == [int(line.rsplit(" ", 1)[1]) for line in lines]


@pytest.mark.parametrize("layout", ["pacs/images", "PACS"])
def test_pacs_damaged_image_is_left_out_by_its_whole_path(layout, tmp_path, pacs_tree, draw, config):
    root = pacs_tree(tmp_path, layout)
    names = ["n02103406_4068-1.png", "n02103406_4068-10.png", "n02103406_4068-11.png"]
    for name in names:
        draw(root / layout / "sketch" / "dog" / name)
        draw(root / layout / "sketch" / "horse" / name)
        if layout == "pacs/images":
            with (root / "pacs/splits/sketch_train_kfold.txt").open("a") as stream:
                stream.write(f"sketch/dog/{name} 1\nsketch/horse/{name} 5\n")
    data = PACS(config(root, ["photo"], ["sketch"]))
    kept = sorted(str(Path(path).relative_to(root / layout)) for path in files(data.test) if "4068" in path)
    assert kept == sorted([f"sketch/dog/{name}" for name in names[1:]] + [f"sketch/horse/{name}" for name in names])


def test_pacs_bad_file_listed_but_absent_is_no_error(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    with (root / "pacs/splits/sketch_train_kfold.txt").open("a") as stream:
        stream.write("sketch/dog/n02103406_4068-1.png 1\n")
    assert len(PACS(config(root, ["photo"], ["sketch"])).test) == 70


def test_dassl_layout_is_preferred_where_both_lie(tmp_path, pacs_tree, config):
    pacs_tree(tmp_path, "PACS")
    pacs_tree(tmp_path, "pacs/images")
    data = PACS(config(tmp_path, ["photo"], ["sketch"]))
    assert all(
        path.startswith(str(tmp_path / "pacs" / "images")) for path in files(data.train_x + data.val + data.test)
    )


def test_vlcs_dassl_release(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    data = VLCS(config(root, ["caltech", "SUN09"], ["VOC2007"]))
    assert data.classnames == VLCS_CLASSES
    assert (len(data.train_x), len(data.val), len(data.test)) == (2 * 5 * 5, 2 * 5 * 2, 5 * 3)
    assert data.target_domains == ["pascal"]
    for item in data.train_x + data.val + data.test:
        assert Path(item.impath).parent.name == str(item.label)
        assert item.classname == VLCS_CLASSES[item.label]
    assert {Path(path).parents[1].name for path in files(data.train_x)} == {"train"}
    assert {Path(path).parents[1].name for path in files(data.val)} == {"crossval"}
    assert {str(Path(path).parents[1].relative_to(root)) for path in files(data.test)} == {"VLCS/PASCAL/test"}


def test_vlcs_full_and_test(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    data = VLCS(config(root, ["caltech"], ["pascal"], VLCS_TEST="full+test"))
    assert len(data.test) == 5 * (5 + 2 + 3)
    assert {Path(path).parents[1].name for path in files(data.test)} == {"train", "crossval", "test"}


def test_vlcs_other_release(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "names")
    data = VLCS(config(root / "VLCS", ["C", "LABELME"], ["sun"]))
    assert (len(data.train_x), len(data.val), len(data.test)) == (2 * 5 * 8, 2 * 5 * 2, 50)
    assert {(Path(item.impath).parent.name, item.label) for item in data.test} == set(zip(VLCS_CLASSES, range(5)))


def test_vlcs_both_releases_side_by_side(tmp_path, vlcs_tree, config):
    vlcs_tree(tmp_path, "names")
    vlcs_tree(tmp_path, "dassl")
    data = VLCS(config(tmp_path, ["caltech"], ["sun"]))
    assert {Path(path).parents[2].name for path in files(data.train_x)} == {"CALTECH"}
    assert {str(Path(path).parents[1].relative_to(tmp_path)) for path in files(data.test)} == {"VLCS/SUN/test"}


@pytest.mark.parametrize(
    ("home", "real"),
    [
        ("OfficeHomeDataset_10072016", "Real World"),
        ("OfficeHome", "Real_World"),
        ("office_home", "real_world"),
        ("office-home", "RealWorld"),
        ("office_home", "Real"),
        ("OFFICEHOME", "real-world"),
        (".", "Rw"),
    ],
)
def test_office_home(home, real, tmp_path, office_home_tree, config):
    office_home_tree(tmp_path, home, ["Art", real])
    data = OfficeHome(config(tmp_path, ["Art"], ["Real World"]))
    assert data.target_domains == ["real_world"]
    assert (len(data.train_x), len(data.val), len(data.test)) == (65, 65, 130)
    names = sorted({Path(path).parent.name for path in files(data.test)})
    assert len(names) == 65
    for item in data.train_x + data.val + data.test:
        assert item.label == names.index(Path(item.impath).parent.name)
        assert item.classname == names[item.label].lower()
    assert data.classnames[57:60] == ["spoon", "tv", "table"]


@pytest.mark.parametrize("prefix", [False, True])
def test_office_home_dg(prefix, tmp_path, office_home_tree, config):
    domains = ["art", "clipart", "product", "real_world"]
    office_home_tree(tmp_path, "office_home_dg", domains, ("train", "val"), prefix)
    data = OfficeHomeDG(config(tmp_path, ["art", "clipart", "product"], ["real_world"]))
    assert (len(data.train_x), len(data.val), len(data.test)) == (3 * 130, 3 * 130, 260)
    assert {Path(path).parents[1].name for path in files(data.train_x)} == {"train"}
    assert {Path(path).parents[1].name for path in files(data.val)} == {"val"}
    assert data.lab2cname[0] == "alarm_clock" and data.lab2cname[58] == "tv"
    for item in data.test:
        name = re.sub(r"^\d{3}_", "", Path(item.impath).parent.name)
        assert item.classname == name.lower() == data.classnames[item.label]


@pytest.mark.parametrize(
    ("home", "lists"),
    [
        ("domainnet", "splits"),
        ("DomainNet", "."),
        ("domain_net", "txt"),
        ("domainNet", "image_list"),
        ("DomainNet", ""),
    ],
)
def test_domainnet(home, lists, tmp_path, domainnet_tree, config):
    domainnet_tree(tmp_path, home, ["clipart", "quckdraw"], lists)
    data = DomainNet(config(tmp_path, ["clipart"], ["quickdraw"]))
    assert data.num_classes == 345 and len(data.classnames) == 345
    assert (len(data.train_x), len(data.val), len(data.test)) == (345, 345, 345 if lists else 690)
    for item in data.train_x + data.val + data.test:
        assert item.label + 1 == int(Path(item.impath).stem.split("_")[1])
        assert item.classname == Path(item.impath).parent.name == data.classnames[item.label]


def test_domainnet_keeps_the_names_of_classes_that_training_lacks(tmp_path, domainnet_tree, config, caplog):
    root = domainnet_tree(tmp_path, "domainnet", ["painting", "real"], "splits")
    path = root / "domainnet/splits/painting_train.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "t-shirt" not in line))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DomainNet(config(root, ["painting"], ["real"]))
    assert len(data.train_x) == 344
    assert (data.num_classes, len(data.classnames), len(data.lab2cname)) == (345, 345, 345)
    assert data.classnames[327:329] == ["t-shirt", "umbrella"] and data.lab2cname[328] == "umbrella"
    assert "no training images of t-shirt in painting" in caplog.text


def test_domainnet_uses_listed_files_only(tmp_path, domainnet_tree, draw, config):
    root = domainnet_tree(tmp_path, "domainnet", ["clipart", "real"], "splits")
    duplicate = draw(root / "domainnet/clipart/axe/clipart_012_000099.jpg")
    data = DomainNet(config(root, ["clipart"], ["real"]))
    assert str(duplicate) not in files(data.train_x + data.val)
    assert data.protocol.count("unknown") == 2


def test_file_endings_in_any_case(tmp_path, pacs_tree, draw, config):
    root = pacs_tree(tmp_path, "PACS", size=1)
    endings = ["JPG", "jpeg", "PNG", "png", "bmp", "WebP", "tif", "TIFF", "ppm"]
    for number, ending in enumerate(endings):
        draw(root / "PACS/photo/dog" / f"extra_{number}.{ending}")
    for name in ("Thumbs.db", "readme.txt", ".hidden.jpg", "._pic.jpg"):
        (root / "PACS/photo/dog" / name).write_bytes(b"")
    data = PACS(config(root, ["sketch"], ["photo"]))
    names = sorted(Path(path).name for path in files(data.test) if "photo/dog" in path)
    assert names == sorted([f"extra_{number}.{ending}" for number, ending in enumerate(endings)] + ["pic_000.jpg"])


def test_disk_order_makes_no_difference(tmp_path, pacs_tree, config, monkeypatch):
    root = pacs_tree(tmp_path, "PACS")
    options = config(root, ["photo", "cartoon"], ["sketch"], NUM_SHOTS=3)
    forward = PACS(options)
    scan = os.scandir

    class Reversed:
        def __init__(self, folder):
            with scan(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(os, "scandir", Reversed)
    backward = PACS(options)
    for part in ("train_x", "val", "test"):
        assert files(getattr(forward, part)) == files(getattr(backward, part))
    assert data_of(forward).fingerprint == data_of(backward).fingerprint


def test_folders_in_other_spellings(tmp_path, office_home_tree, config):
    root = office_home_tree(tmp_path, "Office-Home", ["ART", "product"])
    for folder in (root / "Office-Home").glob("*/*"):
        folder.rename(folder.with_name(folder.name.lower().replace("_", " ")))
    data = OfficeHome(config(root, ["art"], ["product"]))
    assert len(data.test) == 130
    assert {item.classname.replace("_", " ") for item in data.test} == {Path(p).parent.name for p in files(data.test)}


def test_odd_folders_and_loose_images_are_named(tmp_path, pacs_tree, draw, config, caplog):
    root = pacs_tree(tmp_path, "PACS")
    draw(root / "PACS/photo/zebra/1.jpg")
    draw(root / "PACS/photo/loose.jpg")
    draw(root / "PACS/photo/dog/inner/1.jpg")
    (root / "PACS/__MACOSX/photo").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        data = PACS(config(root, ["photo"], ["sketch"]))
    assert len(data.train_x) + len(data.val) == 70
    text = caplog.text
    assert "zebra" in text and "loose.jpg" in text and "PACS/photo/dog: its sub-folders are not read: inner" in text
    assert "__MACOSX" not in text
    assert len([record for record in caplog.records if "published number" in record.message]) == 1
    assert "photo 70 (1670)" in text and "sketch 70 (3929)" in text


def test_images_that_no_list_names(tmp_path, pacs_tree, domainnet_tree, draw, config, caplog):
    caplog.set_level(logging.INFO)
    root = pacs_tree(tmp_path, "pacs/images")
    draw(root / "pacs/images/sketch/dog/n02103406_4068-1.png")  # known to be damaged: left out without a word
    PACS(config(root, ["photo"], ["sketch"]))
    assert "stand in no split list" not in caplog.text
    draw(root / "pacs/images/sketch/dog/more.png")
    draw(root / "pacs/images/sketch/loose.png")
    data = PACS(config(root, ["photo"], ["sketch"]))
    (record,) = (record for record in caplog.records if "stand in no split list" in record.getMessage())
    told = f"2 images in {root}/pacs/images/sketch stand in no split list and are not used: loose.png, dog/more.png"
    assert record.levelno == logging.WARNING and told in record.getMessage() and len(data.test) == 70
    caplog.clear()
    root = domainnet_tree(tmp_path / "b", "domainnet", ["clipart", "sketch"], "splits")
    draw(root / "domainnet/clipart/zebra/duplicate.jpg")
    DomainNet(config(root, ["clipart"], ["sketch"]))
    (record,) = (record for record in caplog.records if "stand in no split list" in record.getMessage())
    assert record.levelno == logging.INFO and "1 images in" in record.getMessage()


def test_more_than_folders_of_parts(tmp_path, vlcs_tree, draw, config, caplog):
    root = vlcs_tree(tmp_path, "dassl")
    draw(root / "VLCS/SUN/bird/1.jpg")
    draw(root / "VLCS/SUN/loose.jpg")
    VLCS(config(root, ["caltech"], ["sun"]))
    assert f"{root}/VLCS/SUN holds more than the folders of its parts, not read: bird, loose.jpg" in caplog.text
