"""FolderDomains: a user's own tree.

Covers: class list from the union of all domains, never from the sources; several spellings of one class;
classnames.txt (order, names that are missing, doubled or left over); trees of another shape; names that are not
ASCII or no text; domains listed beforehand; parts of a split inside the domains, and domains inside the parts; the
folder `images` at each level; parts that do not go together; parts that would be taken for domains.
"""

import logging
import shutil
import unicodedata
from collections import Counter

import pytest

from dassl_clip.datasets import FolderClasses, FolderDomains
from dassl_clip.datasets.verify import verify
from dassl_clip.results.run_data import data_of


@pytest.fixture
def tree(tmp_path, draw):
    """Three domains; `owl` occurs in the last one only, and one class is spelled in two ways."""
    for domain, classes in {
        "day": ["cat", "fire_truck"],
        "night": ["cat", "Fire Truck"],
        "fog": ["cat", "fire_truck", "owl"],
    }.items():
        for name in classes:
            for number in range(5):
                draw(tmp_path / domain / name / f"{number}.JPG")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "empty").mkdir()
    return tmp_path


def test_union_of_all_domains(tree, config, caplog):
    with caplog.at_level(logging.WARNING):
        data = FolderDomains(config(tree, ["day"], ["night"]))
    assert data.domains == ["day", "fog", "night"]
    assert data.classnames == ["Fire Truck", "cat", "owl"]
    assert data.num_classes == 3
    assert {item.label for item in data.train_x} == {0, 1}
    assert {item.classname for item in data.test} == {"Fire Truck", "cat"}
    assert f"{tree / 'day'} has no images of owl" in caplog.text
    assert f"{tree} has folders that are not read: notes" in caplog.text
    assert "class list: the class folders of all domains, sorted" in data.protocol


def test_names_do_not_shift(tree, config):
    data = FolderDomains(config(tree, ["day"], ["fog"]))
    assert Counter((item.label, item.classname) for item in data.test) == {
        (0, "Fire Truck"): 5,
        (1, "cat"): 5,
        (2, "owl"): 5,
    }


def test_list_domains(tree, config):
    assert FolderDomains.list_domains(config(tree, [], [])) == ["day", "fog", "night"]


def test_class_file(tree, config):
    (tree / "classnames.txt").write_text("owl\ncat\n\nfire truck\n")
    data = FolderDomains(config(tree, ["fog"], ["night"]))
    assert data.classnames == ["owl", "cat", "fire truck"]
    assert {(item.label, item.classname) for item in data.test} == {(1, "cat"), (2, "fire truck")}
    assert "class list: classnames.txt" in data.protocol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("owl\ncat\nfire trucks\n", r'there is no class folder "fire trucks". Did you mean .[Ff]ire.[Tt]ruck'),
        ("owl\ncat\n", r"does not name the class folders Fire Truck, fire_truck"),
        ("owl\ncat\nfire_truck\nOwl\n", r'names the class "Owl" twice'),
    ],
)
def test_class_file_that_does_not_fit(text, message, tree, config):
    (tree / "classnames.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        FolderDomains(config(tree, ["day"], ["night"]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/1.jpg", "dog/1.jpg"], "cat holds images itself: one level is missing"),
        (["1.jpg"], "holds images itself; expected are root/domain/class/image"),
        (["top/day/cat/1.jpg"], "one level too many; try DATASET.ROOT .*top"),
        (["day/cat/notes.txt"], "expected are root/domain/class/image"),
        ([], "It holds nothing"),
    ],
)
def test_other_shapes(files, message, tmp_path, draw, config):
    for file in files:
        draw(tmp_path / file)
    with pytest.raises(FileNotFoundError, match=message):
        FolderDomains(config(tmp_path, ["day"], ["night"]))


def test_two_spellings_in_one_domain(tree, draw, config):
    draw(tree / "day" / "Fire-Truck" / "1.jpg")
    with pytest.raises(ValueError, match=r'"Fire-Truck" and "fire_truck" in .*day are one name'):
        FolderDomains(config(tree, ["day"], ["night"]))


def test_unknown_domain(tree, config):
    with pytest.raises(ValueError, match=r'no domain "nigth"; it has day, fog, night. Did you mean .night.'):
        FolderDomains(config(tree, ["day"], ["nigth"]))


def test_names_in_any_script(tmp_path, draw, config):
    for domain in ("été", "冬"):
        for name in ("Straße", "犬 と 猫", "%7Bx}"):
            for number in range(2):
                draw(tmp_path / domain / name / f"bild ä {number}.png")
    decomposed = unicodedata.normalize("NFD", "ÉTÉ")  # as some file systems store it
    data = FolderDomains(config(tmp_path, [decomposed], ["冬"]))
    assert data.source_domains == ["été"]
    assert data.classnames == ["%7Bx}", "Straße", "犬 と 猫"]
    assert (len(data.train_x), len(data.val), len(data.test)) == (3, 3, 6)
    assert len(data_of(data).fingerprint) == 64
    (tmp_path / "classnames.txt").write_text("犬と猫\nSTRASSE\n%7Bx}\n", encoding="utf-8")
    assert FolderDomains(config(tmp_path, ["été"], ["冬"])).classnames == ["犬と猫", "STRASSE", "%7Bx}"]


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "bell\x07"])
def test_names_that_are_no_text(name, tmp_path, draw, config):
    for domain in ("day", "night"):
        for folder in ("cat", name):
            draw(tmp_path / domain / folder / "1.jpg")
    with pytest.raises(ValueError, match=r"the name of the folder '.*' in .*/day is not in UTF-8") as caught:
        FolderDomains(config(tmp_path, ["day"], ["night"]))
    str(caught.value).encode()
    shutil.rmtree(tmp_path / "day" / name)
    (tmp_path / "day").rename(tmp_path / name)
    shutil.rmtree(tmp_path / "night" / name)
    with pytest.raises(ValueError, match="is not in UTF-8"):
        FolderDomains(config(tmp_path, ["night"], ["night"]))


def test_images_outside_the_domains(tree, draw, config, caplog):
    draw(tree / "loose.jpg")
    with caplog.at_level(logging.WARNING):
        FolderDomains(config(tree, ["day"], ["night"]))
    assert f"{tree} holds images outside the domains, not read: loose.jpg" in caplog.text


DOMAINS, CLASSES = ("mnist", "svhn"), ("0", "1")


def write_parts(root, draw, shape, parts, size=2):
    """Images of two domains and two classes: `shape` says how domain, part and class are nested."""
    for domain in DOMAINS:
        for part in parts:
            for name in CLASSES:
                for number in range(size):
                    folder = shape.format(domain=domain, part=part, name=name)
                    draw(root / folder / f"{domain}-{part}-{name}-{number}.jpg")


def parts_of(items):
    """(domain, part, class) of images by their names, with the number of each."""
    return Counter(tuple(item.impath.rsplit("/", 1)[1].split("-")[:3]) for item in items or ())


def expected(domains, parts, size=2):
    return {(domain, part, name): size for domain in domains for part in parts for name in CLASSES}


SHAPES = [
    "{domain}/{part}/{name}",
    "{part}/{domain}/{name}",
    "{domain}/images/{part}/{name}",
    "{domain}/{part}/images/{name}",
    "{part}/images/{domain}/{name}",
    "images/{domain}/{part}/{name}",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_5_1_parts_below_or_above_the_domains(shape, tmp_path, draw, config):
    """Row 5.1: Digits-DG's domain/part/class, its mirror image, and `images` anywhere, are read as a split."""
    write_parts(tmp_path, draw, shape, ("train", "val"))
    (tmp_path / "splits").mkdir()
    data = FolderDomains(config(tmp_path, ["mnist"], ["svhn"]))
    assert data.domains == ["mnist", "svhn"] and data.classnames == ["0", "1"]
    assert parts_of(data.train_x) == expected(["mnist"], ["train"])
    assert parts_of(data.val) == expected(["mnist"], ["val"])
    assert parts_of(data.test) == expected(["svhn"], ["train", "val"])  # as Dassl tests its OfficeHomeDG and Digits-DG
    own = FolderDomains(config(tmp_path, ["mnist"], ["mnist"], NUM_SHOTS=1))
    assert parts_of(own.test) == expected(["mnist"], ["val"])
    assert {key[1] for key in parts_of(own.train_x)} | {key[1] for key in parts_of(own.val)} == {"train"}
    assert "train: train of mnist" in data.protocol and "test: train + val of svhn" in data.protocol


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_5_1_a_test_part_is_the_test_of_a_held_out_domain(shape, tmp_path, draw, config, caplog):
    write_parts(tmp_path, draw, shape, ("Training", "crossval", "Test", "full"))
    data = FolderDomains(config(tmp_path, ["mnist"], ["svhn"]))
    assert parts_of(data.train_x) == expected(["mnist"], ["Training"])
    assert parts_of(data.val) == expected(["mnist"], ["crossval"])
    assert parts_of(data.test) == expected(["svhn"], ["Test"])
    assert "not read: full" in caplog.text


@pytest.mark.parametrize("shape", ["{domain}/images/{name}", "{domain}/train/{name}", "images/{domain}/{name}"])
def test_5_1_one_folder_between_domain_and_class(shape, tmp_path, draw, config):
    """Office-31's amazon/images/mouse/frame_0001.jpg: a folder that splits nothing is looked through."""
    write_parts(tmp_path, draw, shape, ("all",), size=5)
    for folder in ("interest_points", "notes"):
        (tmp_path / "mnist" / folder / "0").mkdir(parents=True)
    data = FolderDomains(config(tmp_path, ["mnist"], ["svhn"]))
    assert data.domains == ["mnist", "svhn"] and data.classnames == ["0", "1"]
    assert (len(data.train_x), len(data.val)) == (8, 2)
    assert parts_of(data.test) == expected(["svhn"], ["all"], 5)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_5_1_verify_says_the_same(shape, tmp_path, draw, config):
    write_parts(tmp_path, draw, shape, ("train", "val"))
    report = verify(FolderDomains, config(tmp_path, [], []))
    assert {count.name: count.parts for count in report.counts} == {name: {"train": 4, "val": 4} for name in DOMAINS}
    assert all("class names are bare numbers (0, 1)" in finding.text for finding in report.findings), report.findings


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/cat/1.jpg", "test/cat/1.jpg"], r"train.*DATASET\.NAME FolderClasses.*DATASET\.ROOT {parent}$"),
        (["images/cat/1.jpg", "labels/cat/1.jpg"], r"images.*rename"),
        (["day/cat/1.jpg", "night/cat/1.jpg", "Validation/cat/1.jpg"], r"Validation.*rename"),
        (["day/cat/1.jpg", "night/train/cat/1.jpg", "night/val/cat/1.jpg"], r"day \(no parts\); night \(train, val"),
        (
            ["day/train/cat/1.jpg", "night/train/cat/1.jpg", "night/val/cat/1.jpg"],
            r"\(train\); night \(train, val",
        ),
        (
            ["train/day/cat/1.jpg", "train/night/cat/1.jpg", "test/day/cat/1.jpg"],
            r"\(train, test\); night \(train",
        ),
        (
            ["train/day/cat/1.jpg", "test/day/cat/1.jpg", "night/cat/1.jpg"],
            r"train, test and, beside those, night",
        ),
        (["day/train/cat/1.jpg", "day/val/cat/1.jpg", "day/cat/1.jpg"], r"day holds .*cat.*train, val"),
        (["day/images/cat/1.jpg", "day/cat/1.jpg"], r"day holds .*cat.*images"),
        (["day/val/cat/1.jpg", "day/test/cat/1.jpg"], r"val, test, but no train"),
        (["day/train/cat/1.jpg", "day/Train/cat/1.jpg"], r"day has two folders for the part train: Train, train"),
    ],
)
def test_5_1_trees_that_cannot_be_read_as_domains(files, message, tmp_path, draw, config):
    """Row 5.1: no domain is called like a part of a split; domains whose parts differ are refused by name."""
    root = tmp_path / "tree"
    for file in files:
        draw(root / file)
    with pytest.raises(ValueError, match=message.format(parent=tmp_path)) as caught:
        FolderDomains(config(root, ["day"], ["night"]))
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)


def test_5_1_a_class_may_be_called_like_a_part(tmp_path, draw, config):
    for domain in ("day", "night"):
        for name in ("train", "car", "data"):
            draw(tmp_path / domain / name / "1.jpg")
    assert FolderDomains(config(tmp_path, ["day"], ["night"])).classnames == ["car", "data", "train"]


def test_5_1_the_advice_leads_to_a_tree_that_is_read(tmp_path, draw, config):
    """Row 5.1: what `verify` advises never makes a domain of a part."""
    write_parts(tmp_path / "up" / "digits", draw, SHAPES[0], ("train", "val"))
    with pytest.raises(FileNotFoundError, match=rf"try DATASET.ROOT {tmp_path}/up/digits\.") as caught:
        FolderDomains(config(tmp_path / "up", ["mnist"], ["svhn"]))
    root = str(caught.value).rsplit("DATASET.ROOT ")[1].rstrip(".")
    assert FolderDomains(config(root, ["mnist"], ["svhn"])).domains == ["mnist", "svhn"]


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_5_1_folder_classes_names_the_loader_of_domains(shape, tmp_path, draw, config):
    write_parts(tmp_path, draw, shape, ("train", "val"))
    with pytest.raises(FileNotFoundError, match=r"read by DATASET\.NAME FolderDomains"):
        FolderClasses(config(tmp_path, [], []))


@pytest.mark.parametrize("shape", ["images/{part}/{name}", "{part}/images/{name}"])
def test_5_1_folder_classes_look_through_images(shape, tmp_path, draw, config):
    write_parts(tmp_path, draw, shape, ("train", "test"))
    data = FolderClasses(config(tmp_path, [], []))
    assert {key[1] for key in parts_of(data.train_x)} == {"train"} and len(data.train_x) == 8
    assert {key[1] for key in parts_of(data.test)} == {"test"} and len(data.test) == 8
