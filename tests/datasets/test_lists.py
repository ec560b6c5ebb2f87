"""The published facts in `datasets/lists`.

Covers: label orders (landmarks of each data set, the letters-only rule of DomainNet, the place of TV, sorted wnids),
counts that add up to the published totals, halves of the class lists, spellings that are unambiguous, VLCS's numbers,
links with checksums of the right form, a link to every split file that a loader reads.
"""

import re

import pytest

from dassl_clip.datasets.spec import load_spec
from dassl_clip.results.data_sets import LISTS, name_key, read_entry

FILES = ["pacs", "vlcs", "office_home", "office_home_dg", "domainnet", "terra_incognita"]
ENTRIES = sorted(path.stem for path in LISTS.glob("*.json"))
NO_SOURCE = {"cub_paintings", "digits_dg", "imagenet_c", "nico_pp", "office31", "visda17"}  # no address was checked
COOP = {  # classes, base, new, train, val, test, test of base, test of new
    "caltech101": (100, 50, 50, 4128, 1649, 2465, 1549, 916),
    "oxford_pets": (37, 19, 18, 2944, 736, 3669, 1881, 1788),
    "stanford_cars": (196, 98, 98, 6509, 1635, 8041, 4002, 4039),
    "oxford_flowers": (102, 51, 51, 4093, 1633, 2463, 1053, 1410),
    "food101": (101, 51, 50, 50500, 20200, 30300, 15300, 15000),
    "fgvc_aircraft": (100, 50, 50, 3334, 3333, 3333, 0, 0),
    "sun397": (397, 199, 198, 15880, 3970, 19850, 9950, 9900),
    "dtd": (47, 24, 23, 2820, 1128, 1692, 864, 828),
    "eurosat": (10, 5, 5, 13500, 5400, 8100, 4200, 3900),
    "ucf101": (101, 51, 50, 7639, 1898, 3783, 1934, 1849),
}


@pytest.mark.parametrize(
    ("file", "classes", "domains", "total"),
    [
        ("pacs", 7, 4, 9991),
        ("vlcs", 5, 4, 10729),
        ("office_home", 65, 4, 15588),
        ("office_home_dg", 65, 4, 0),
        ("domainnet", 345, 6, 586575),
        ("terra_incognita", 10, 4, 24788),
    ],
)
def test_sizes(file, classes, domains, total):
    spec = load_spec(file)
    assert (len(spec.classes), len(spec.domains), sum(spec.images.values())) == (classes, domains, total)
    for domain, entry in spec.details.items():
        for counts in (entry.get("parts"), entry.get("per_class")):
            if counts:
                assert sum(counts.values()) == spec.images[domain]
        if "per_class" in entry:
            assert set(entry["per_class"]) == set(spec.classes)


def test_domainnet_order():
    classes = load_spec("domainnet").classes
    assert list(classes) == sorted(classes, key=lambda name: re.sub("[^a-z]", "", name.lower()))
    landmarks = {"aircraft_carrier": 0, "cello": 66, "cell_phone": 67, "paintbrush": 205, "paint_can": 206}
    landmarks |= {"syringe": 300, "teddy-bear": 303, "The_Eiffel_Tower": 308, "t-shirt": 327, "zigzag": 344}
    assert {name: classes.index(name) for name in landmarks} == landmarks
    assert sum(a != b for a, b in zip(classes, sorted(classes))) == 328
    assert sum(a != b for a, b in zip(classes, sorted(classes, key=str.lower))) == 31


@pytest.mark.parametrize("file", ["office_home", "office_home_dg"])
def test_office_home_order(file):
    spec = load_spec(file)
    assert list(spec.class_spellings) == sorted(spec.class_spellings)
    assert spec.classes == tuple(name.lower() for name in spec.class_spellings)
    assert [spec.classes.index(name) for name in ("speaker", "tv", "table", "trash_can", "webcam")] == [
        56,
        58,
        59,
        63,
        64,
    ]
    for name in ("Flipflops", "ToothBrush", "Postit_Notes", "Push_Pin", "Flowers", "TV"):
        assert name in spec.class_spellings


def test_small_lists():
    assert load_spec("pacs").classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    vlcs = load_spec("vlcs")
    assert vlcs.classes == ("bird", "car", "chair", "dog", "person")
    assert [vlcs.class_keys()[str(number)] for number in range(5)] == [0, 1, 2, 3, 4]
    assert load_spec("pacs").skip == {"sketch/dog/n02103406_4068-1.png"}


@pytest.mark.parametrize("file", FILES)
def test_spellings_name_one_thing(file):
    spec = load_spec(file)
    domains = [(name_key(spelling), domain) for domain, more in spec.domains.items() for spelling in (domain, *more)]
    assert len({key for key, _ in domains}) == len(domains)
    assert spec.domain_keys() == dict(domains)
    labels = spec.class_keys()
    for label, names in enumerate(zip(spec.classes, spec.folder_names)):
        assert {labels[name_key(name)] for name in names} == {label}
    assert sorted(set(labels.values())) == list(range(len(spec.classes)))


@pytest.mark.parametrize(
    ("file", "given", "canonical"),
    [
        ("pacs", ["A", "ArtPainting", "Art Painting", "art", "ART-PAINTING"], "art_painting"),
        ("office_home", ["Real World", "Real_World", "RealWorld", "real_world", "Real", "Rw", "R"], "real_world"),
        ("vlcs", ["Caltech101", "CALTECH", "caltech-101", "C"], "caltech"),
        ("vlcs", ["VOC2007", "V", "PASCAL", "voc"], "pascal"),
        ("domainnet", ["infograph", "inforgraph", "info"], "infograph"),
        ("domainnet", ["quckdraw", "QuickDraw"], "quickdraw"),
        ("terra_incognita", ["L38", "38", "location 38", "Location_38"], "location_38"),
    ],
)
def test_domains_by_any_spelling(file, given, canonical):
    spec = load_spec(file)
    assert [spec.resolve_domains([name], "SOURCE") for name in given] == [[canonical]] * len(given)


@pytest.mark.parametrize("file", COOP)
def test_coop_sizes(file):
    entry, spec = read_entry(file), load_spec(file)
    classes, base, new, train, val, test, test_base, test_new = COOP[file]
    assert (len(spec.classes), entry["halves"]) == (classes, {"base": base, "new": new})
    assert spec.images == {"train": train, "val": val, "test": test}
    halves = entry.get("test_halves", {"base": 0, "new": 0})
    assert (halves["base"], halves["new"]) == (test_base, test_new)
    assert sum(halves.values()) in (0, test)
    assert base == -(-classes // 2) and len({*map(name_key, spec.classes)}) == classes
    if "split_file" in entry:
        _, label, name = entry["first_train_entry"]
        assert spec.classes[label] == name


def test_coop_orders():
    caltech, food, ucf = (load_spec(file).classes for file in ("caltech101", "food101", "ucf101"))
    assert caltech[:5] == ("face", "leopard", "motorbike", "accordion", "airplane")
    assert list(load_spec("caltech101").folder_names) == sorted(load_spec("caltech101").folder_names)
    assert not {"BACKGROUND_Google", "Faces_easy"} & {*load_spec("caltech101").folder_names}
    assert food[16:18] == ("cheese_plate", "cheesecake") and list(food) == sorted(food)
    assert (ucf[34], ucf[35], ucf[46], ucf[47]) == ("Hammering", "Hammer_Throw", "Jumping_Jack", "Jump_Rope")
    flowers, cars = load_spec("oxford_flowers").classes, load_spec("stanford_cars").classes
    assert (flowers[0], flowers[76]) == ("pink primrose", "passion flower") and cars[13] == "2012 Audi TTS Coupe"
    sun, aircraft = load_spec("sun397").classes, load_spec("fgvc_aircraft").classes
    paths = ["/".join([name.split(" ")[-1][0], *name.split(" ")[::-1]]) for name in sun]
    assert paths == sorted(paths) and "outdoor apartment_building" in sun
    assert list(aircraft) == sorted(aircraft) and {"F-16A/B", "F/A-18"} < {*aircraft}
    eurosat = load_spec("eurosat")
    assert list(eurosat.folder_names) == sorted(eurosat.folder_names) and eurosat.classes[9] == "Sea or Lake"
    for file in ("dtd", "oxford_pets"):
        assert list(load_spec(file).classes) == sorted(load_spec(file).classes)


def test_imagenet():
    spec = load_spec("imagenet")
    landmarks = {0: "tench", 7: "rooster", 21: "kite (bird of prey)", 134: "crane bird", 517: "construction crane"}
    landmarks |= {836: "sunglasses", 837: "sunglasses", 657: "missile", 744: "missile", 999: "toilet paper"}
    landmarks |= {421: "baluster / handrail"}
    assert {label: spec.classes[label] for label in landmarks} == landmarks
    assert len(set(spec.classes)) == 998 and len(set(spec.folder_names)) == 1000
    assert list(spec.folder_names) == sorted(spec.folder_names)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in spec.folder_names)
    assert sum(" / " in name for name in spec.classes) == 5 and spec.class_keys()["n04356056"] == 837


def test_imagenet_variants():
    whole = dict(zip(load_spec("imagenet").folder_names, load_spec("imagenet").classes))
    subsets = [load_spec(file) for file in ("imagenet_a", "imagenet_r")]
    for spec in subsets:
        assert len(set(spec.folder_names)) == len(set(spec.classes)) == 200
        assert list(spec.folder_names) == sorted(spec.folder_names)
        assert all(whole[wnid] == name for wnid, name in zip(spec.folder_names, spec.classes))
    assert len({*subsets[0].folder_names} & {*subsets[1].folder_names}) == 86
    assert [subsets[0].folder_names[0], subsets[1].folder_names[0]] == ["n01498041", "n01443537"]
    images = {file: load_spec(file).images for file in ENTRIES if file.startswith("imagenet_") and file != "imagenet_c"}
    assert {file: number["test"] for file, number in images.items()} == {
        "imagenet_a": 7500,
        "imagenet_r": 30000,
        "imagenet_sketch": 50889,
        "imagenet_v2": 10000,
    }


@pytest.mark.parametrize("file", ENTRIES)
def test_links(file):
    entry = read_entry(file)
    assert entry["terms"] and entry["reference"]
    assert bool(entry["links"]) == (file not in NO_SOURCE)
    for link in entry["links"]:
        assert {*link} <= {"what", "url", "size", "md5"} and link["what"]
        assert re.fullmatch(r"https?://\S+", link.get("url", "https://none"))
        assert re.fullmatch(r"[0-9a-f]{32}", link.get("md5", "0" * 32))
    if "split_file" in entry:
        assert any(link["what"] == entry["split_file"] and "url" in link for link in entry["links"])
