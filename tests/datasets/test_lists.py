"""The published facts in `datasets/lists`.

Covers: label orders (landmarks of each data set, the letters-only rule of DomainNet, the place of TV), counts that
add up to the published totals, spellings that are unambiguous, VLCS's numbers.
"""

import re

import pytest

from dassl_clip.datasets.spec import load_spec, name_key

FILES = ["pacs", "vlcs", "office_home", "office_home_dg", "domainnet"]


@pytest.mark.parametrize(
    ("file", "classes", "domains", "total"),
    [
        ("pacs", 7, 4, 9991),
        ("vlcs", 5, 4, 10729),
        ("office_home", 65, 4, 15588),
        ("office_home_dg", 65, 4, 0),
        ("domainnet", 345, 6, 586575),
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
    ],
)
def test_domains_by_any_spelling(file, given, canonical):
    spec = load_spec(file)
    assert [spec.resolve_domains([name], "SOURCE") for name in given] == [[canonical]] * len(given)
