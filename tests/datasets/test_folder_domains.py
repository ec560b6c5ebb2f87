"""FolderDomains: a user's own tree.

Covers: class list from the union of all domains, never from the sources; several spellings of one class;
classnames.txt (order, names that are missing, doubled or left over); trees of another shape; names that are not
ASCII or no text; domains listed beforehand.
"""

import logging
import shutil
import unicodedata
from collections import Counter

import pytest

from dassl_clip.datasets import FolderDomains


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
    assert f"{tree} has folders without class folders, not read: notes" in caplog.text
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
        ("owl\ncat\nfire trucks\n", r'there is no class folder "fire trucks". Did you mean "[Ff]ire.[Tt]ruck"'),
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
    with pytest.raises(ValueError, match=r'no domain "nigth"; it has day, fog, night. Did you mean "night"'):
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
    assert len(data.fingerprint) == 64
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
