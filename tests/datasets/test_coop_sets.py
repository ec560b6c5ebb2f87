"""The data sets of CoOp's split files, and FGVC Aircraft with its three lists.

Covers: each data set in CoOp's layout (parts, labels, names, half of the classes), the few-shot draw against Dassl's
own function with the global generator and CoOp's order of draw and subset, wild layouts (other folder names, nesting
one level too deep, letter case of folders and endings, splits kept apart, labels counted from 1, backslashes), the
published split told from another one, and each sentence: split file missing, of another data set, no split file, files
missing, another data set in the folder, domains or protocols that do not apply.
"""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

import dassl_clip.datasets as room
from dassl.data.datasets import DatasetBase, Datum
from dassl_clip.datasets import Caltech101, EuroSAT, FGVCAircraft, Food101, OxfordPets, StanfordCars
from dassl_clip.datasets.spec import load_spec
from dassl_clip.results.data_sets import read_entry
from dassl_clip.results.run_data import data_of

FILES = ["caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "sun397", "dtd"]
FILES += ["eurosat", "ucf101"]


def files(items):
    return [item.impath for item in items]


@pytest.mark.parametrize("file", FILES)
def test_each_data_set(file, tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, file)
    entry = read_entry(file)
    data = getattr(room, entry["name"])(config(tmp_path, [], []))
    assert data.classnames == entry["classes"] and data.domains == []
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert [(item.label, item.classname) for item in items] == [(label, name) for _, label, name in rows[part]]
        assert all(
            item.impath.endswith(f"/{path}") and item.domain == 0 for item, (path, _, _) in zip(items, rows[part])
        )
        assert all(map(Path.is_file, map(Path, files(items[:3]))))
    base, new = (getattr(room, entry["name"])(config(tmp_path, [], [], SUBSAMPLE_CLASSES=s)) for s in ("base", "new"))
    assert (base.num_classes, new.num_classes) == (entry["halves"]["base"], entry["halves"]["new"])
    assert base.classnames + new.classnames == entry["classes"]
    assert {item.label for item in new.test} == set(range(new.num_classes))


def coop_subsample(datasets, subset):
    """CoOp's rule: sorted labels of train, first ceil(n/2) or the rest, relabelled from 0."""
    labels = sorted({item.label for item in datasets[0]})
    half = -(-len(labels) // 2)
    chosen = labels[:half] if subset == "base" else labels[half:]
    new = {label: position for position, label in enumerate(chosen)}
    return [[(item.impath, new[item.label]) for item in items if item.label in new] for items in datasets]


@pytest.mark.parametrize(("subset", "shots", "seed"), [("base", 2, 1), ("new", 3, 2), ("new", 6, 3)])
def test_draw_and_subset_equal_coop(subset, shots, seed, tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, "eurosat", sizes=(8, 6, 2))
    home = tmp_path / "eurosat/2750"
    lists = {p: [Datum(str(home / path), label, 0, name) for path, label, name in rows[p]] for p in rows}
    random.seed(seed)
    train = DatasetBase().generate_fewshot_dataset(lists["train"], num_shots=shots)
    val = DatasetBase().generate_fewshot_dataset(lists["val"], num_shots=min(shots, 4))
    expected = coop_subsample([train, val, lists["test"]], subset)
    data = EuroSAT(config(tmp_path, [], [], NUM_SHOTS=shots, SEED=seed, SUBSAMPLE_CLASSES=subset))
    got = [[(item.impath, item.label) for item in items] for items in (data.train_x, data.val, data.test)]
    assert got == expected


@pytest.mark.parametrize(
    ("file", "home", "split"),
    [
        ("caltech101", "caltech-101/caltech-101/101_ObjectCategories", None),
        ("caltech101", "Caltech101/101_objectcategories", "splits/split_zhou_Caltech101.json"),
        ("oxford_pets", "OxfordPets/images/images", "OxfordPets/split_zhou_OxfordPets.json"),
        ("oxford_flowers", "Flower102/jpg", "data_splits/split_zhou_OxfordFlowers.json"),
        ("eurosat", "eurosat/EuroSAT_RGB", None),
        ("eurosat", "2750", "split_zhou_EuroSAT.json"),
        ("dtd", "dtd/dtd/images", None),
        ("sun397", "sun397", None),
        ("ucf101", "ucf101/ucf-101-midframes", None),
        ("food101", "food-101/food-101/images", "data/data_splits/split_zhou_Food101.json"),
    ],
)
def test_wild_layouts(file, home, split, tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, file, home, split, sizes=(1, 1, 1))
    data = getattr(room, read_entry(file)["name"])(config(tmp_path, [], []))
    assert files(data.train_x) == [str(tmp_path / home / path) for path, _, _ in rows["train"]]


def test_the_data_sets_own_folder_as_root(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "oxford_pets")
    above, inside = (OxfordPets(config(root, [], [])) for root in (tmp_path, tmp_path / "oxford_pets"))
    assert data_of(above).fingerprint == data_of(inside).fingerprint


def test_nested_folders_of_cars(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "stanford_cars")
    home = tmp_path / "stanford_cars"
    plain = data_of(StanfordCars(config(tmp_path, [], []))).fingerprint
    shutil.move(home / "cars_train", home / "moved")
    (home / "cars_train").mkdir()
    shutil.move(home / "moved", home / "cars_train/cars_train")
    data = StanfordCars(config(tmp_path, [], []))
    assert data_of(data).fingerprint == plain
    assert any("/cars_train/cars_train/" in path for path in files(data.train_x))


def test_letter_case_on_the_disk(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat", sizes=(2, 1, 1))
    home = tmp_path / "eurosat/2750"
    for path in list(home.glob("Forest/*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    (home / "River").rename(home / "river")
    data = EuroSAT(config(tmp_path, [], []))
    assert sum(path.endswith(".JPG") for path in files(data.train_x)) == 2
    assert sum("/river/" in path for path in files(data.train_x)) == 2


@pytest.mark.parametrize("change", ["labels from 1", "backslashes"])
def test_other_ways_to_write_the_split(change, tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, "eurosat", first=1 if change == "labels from 1" else 0)
    if change == "backslashes":
        written = {part: [[path.replace("/", "\\"), *rest] for path, *rest in rows[part]] for part in rows}
        (tmp_path / "eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(written))
    data = EuroSAT(config(tmp_path, [], []))
    assert [item.classname for item in data.test] == [name for _, _, name in rows["test"]]
    assert sorted({item.label for item in data.test}) == list(range(10))


def test_another_split_is_told_from_the_published_one(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat")
    assert "NOT the published split" in EuroSAT(config(tmp_path, [], [])).protocol
    entry = read_entry("eurosat")
    counts, rows = entry["images"], {"train": [entry["first_train_entry"]], "val": [], "test": []}
    (tmp_path / "eurosat/2750/AnnualCrop/AnnualCrop_1381.jpg").touch()
    for part, missing in (("train", counts["train"] - 1), ("val", counts["val"]), ("test", counts["test"])):
        for number in range(missing):
            label = number % 10
            folder = entry["class_spellings"][label]
            path = f"{folder}/{folder}_{part}{number}.jpg"
            (tmp_path / "eurosat/2750" / path).touch()
            rows[part].append([path, label, entry["classes"][label]])
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    data = EuroSAT(config(tmp_path, [], [], NUM_SHOTS=16))
    assert "(as published)" in data.protocol
    assert Counter(item.label for item in data.train_x) == dict.fromkeys(range(10), 16)


def test_a_split_of_ones_own(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat", split="mine.json")
    with pytest.raises(FileNotFoundError, match=r"split_zhou_EuroSAT.json not found"):
        EuroSAT(config(tmp_path, [], []))
    data = EuroSAT(config(tmp_path, [], [], SPLIT_FILE=str(tmp_path / "mine.json")))
    assert len(data.train_x) == 40 and "mine.json (NOT the published split" in data.protocol
    with pytest.raises(FileNotFoundError, match=r"SPLIT_FILE: there is no file .*other.json"):
        EuroSAT(config(tmp_path, [], [], SPLIT_FILE=str(tmp_path / "other.json")))


def test_no_split_file(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "food101", split="")
    message = (
        r"split_zhou_Food101.json not found in .*food-101.* It is published at https://drive.google.com/file/d/1QK0.*"
        r"not comparable; `dassl-clip data verify Food101 --root .* --make-split` makes one under another name"
    )
    with pytest.raises(FileNotFoundError, match=message):
        Food101(config(tmp_path, [], []))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>quota exceeded</html>", r"is no split file with the lists train, val and test"),
        ('{"train": [["a.jpg", 0]], "test": []}', r"is no split file with the lists"),
        ('{"train": [], "val": [], "test": []}', r"has no images in train or in test"),
        ('{"train": [["a.jpg", 0, "Forest"]], "test": [["b.jpg", 1, "Forest"]]}', r'label 0 of a.jpg is "Forest", exp'),
        (
            '{"train": [["a.jpg", 0, "dog"]], "test": [["b.jpg", 1, "cat"]]}',
            r'is "dog", expected "Annual Crop Land"',
        ),
        (
            '{"train": [["a.jpg", 0, "annual_crop_land"]], "test": [["a.jpg", 0, "Annual Crop Land"]]}',
            r"names a.jpg twice",
        ),
    ],
)
def test_split_files_that_cannot_be_used(text, message, tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat", sizes=(1, 1, 1))
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        EuroSAT(config(tmp_path, [], []))


def test_files_missing(tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, "caltech101", sizes=(2, 1, 1))
    lost = rows["train"][7][0]
    (tmp_path / "caltech-101/101_ObjectCategories" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 400 files of .* are missing in .*, first: {lost}"):
        Caltech101(config(tmp_path, [], []))


def test_another_data_set_in_the_folder(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "oxford_pets")
    shutil.rmtree(tmp_path / "oxford_pets/images")
    (tmp_path / "oxford_pets/images/n02086646-Blenheim_spaniel").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"none of \d+ files .* first: .*jpg.*n02086646.*Stanford Dogs"):
        OxfordPets(config(tmp_path, [], []))


def test_domains_and_protocols_that_do_not_apply(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat")
    with pytest.raises(ValueError, match=r"EuroSAT has no domains, but DATASET.TARGET_DOMAINS names real"):
        EuroSAT(config(tmp_path, [], ["real"]))
    every = EuroSAT(config(tmp_path, [], [], PROTOCOL="all-images"))
    assert len(every.test) == 90 and "nothing may be trained on their labels" in every.protocol
    anew = EuroSAT(config(tmp_path, [], [], PROTOCOL="holdout"))
    assert (len(anew.test), len(anew.train_x) + len(anew.val)) == (10, 80)


def aircraft(root: Path, home: str, ending: str = "jpg") -> dict[str, list[tuple[str, str]]]:
    names, number, rows = load_spec("fgvc_aircraft").classes, 0, {}
    (root / home / "images").mkdir(parents=True)
    for part, size in (("train", 2), ("val", 1), ("test", 3)):
        rows[part] = []
        for name in reversed(names):
            for _ in range(size):
                number += 1
                (root / home / "images" / f"{number:07d}.{ending}").touch()
                rows[part].append((f"{number:07d}", name))
        text = "".join(f"{image} {name}\n" for image, name in rows[part])
        (root / home / f"images_variant_{part}.txt").write_text(text)
    return rows


@pytest.mark.parametrize("home", ["fgvc_aircraft", "fgvc-aircraft-2013b/data", "fgvc_aircraft/data", "."])
def test_aircraft(home, tmp_path, config):
    rows = aircraft(tmp_path, home)
    data = FGVCAircraft(config(tmp_path, [], []))
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert [(Path(item.impath).stem, item.classname) for item in items] == rows[part]
    assert data.classnames[72:74] == ["F-16A/B", "F/A-18"] and data.classnames[37] == "BAE 146-200"


def test_aircraft_lists(tmp_path, config):
    aircraft(tmp_path, "fgvc_aircraft")
    path = tmp_path / "fgvc_aircraft/images_variant_val.txt"
    path.write_text("0000001 Zeppelin\n")
    with pytest.raises(ValueError, match=r'images_variant_val.txt, line 1: "Zeppelin" is no variant'):
        FGVCAircraft(config(tmp_path, [], []))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images_variant_val.txt not found in .*fgvc_aircraft"):
        FGVCAircraft(config(tmp_path, [], []))
