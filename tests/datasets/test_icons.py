"""The embedded data set through Dassl's doors.

Covers: registered name, class list and order, the four domains, parts inside a domain and leaving one out, several
sources, groups on one side for whatever a run trains on and tests, shots, base and new classes, fingerprint, a copy in
DATASET.ROOT, unknown domains, missing pictures and broken split files.
"""

import csv
import shutil
from collections import Counter

import pytest
from PIL import Image

from dassl_clip.datasets.icons import Icons
from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.results.run_data import data_of

DOMAINS = ("emoji", "flat", "line", "solid")


@pytest.fixture(scope="module")
def rows():
    with (ICONS_FOLDER / "split.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def load(config):
    return lambda sources, targets, root="", **options: Icons(config(root, sources, targets, **options))


def paths(items):
    return sorted(item.impath for item in items)


def wanted(rows, domains, parts):
    return sorted(str(ICONS_FOLDER / r["path"]) for r in rows if r["domain"] in domains and r["split"] in parts)


def test_classes_and_domains(load, rows):
    data = load(["emoji"], ["emoji"])
    assert data.classnames == sorted({row["class"] for row in rows}) and data.num_classes == 45
    assert data.classnames[15] == "drinking glass" and data.lab2cname[38] == "smiley face"
    assert tuple(data.domains) == DOMAINS
    for item in data.train_x + data.test:
        assert item.classname == data.classnames[item.label]
        assert f"/{item.classname.replace(' ', '_')}/" in item.impath


@pytest.mark.parametrize("domain", DOMAINS)
def test_inside_a_domain(load, rows, domain):
    data = load([domain], [domain])
    assert paths(data.train_x) == wanted(rows, [domain], ["train"])
    assert paths(data.val) == wanted(rows, [domain], ["val"])
    assert paths(data.test) == wanted(rows, [domain], ["test"])


@pytest.mark.parametrize("target", DOMAINS)
def test_leaving_one_domain_out(load, rows, target):
    sources = [domain for domain in DOMAINS if domain != target]
    data = load(sources, [target])
    assert paths(data.train_x) == wanted(rows, sources, ["train"])
    assert paths(data.val) == wanted(rows, sources, ["val"])
    assert paths(data.test) == wanted(rows, [target], ["train", "val", "test"])
    assert {item.domain for item in data.train_x} == {0, 1, 2}


def test_no_drawing_is_trained_on_and_tested(load, rows):
    group = {str(ICONS_FOLDER / row["path"]): row["group"] for row in rows}
    for domain in DOMAINS:
        for seed in (1, 2):
            data = load([domain], [domain], NUM_SHOTS=16, SEED=seed)
            used = {group[item.impath] for item in data.train_x + data.val}
            assert not used & {group[item.impath] for item in data.test}


@pytest.mark.parametrize("domain", DOMAINS)
def test_sixteen_shots(load, domain):
    data = load([domain], [domain], NUM_SHOTS=16)
    counts = Counter(item.label for item in data.train_x)
    assert set(counts) == set(range(45)) and max(counts.values()) == 16
    assert max(Counter(item.label for item in data.val).values()) <= 4


def test_base_and_new_classes_part_the_list(load):
    base, new = (load(["line"], ["line"], SUBSAMPLE_CLASSES=name) for name in ("base", "new"))
    assert base.classnames + new.classnames == load(["line"], ["line"]).classnames
    assert {item.label for item in new.test} == set(range(22)) and len(base.classnames) == 23


def test_fingerprint_tells_the_pictures_apart(load):
    first = data_of(load(["line"], ["line"], NUM_SHOTS=4)).fingerprint
    assert first == data_of(load(["line"], ["line"], NUM_SHOTS=4)).fingerprint
    assert first != data_of(load(["line"], ["line"], NUM_SHOTS=4, SEED=2)).fingerprint
    assert first != data_of(load(["solid"], ["solid"], NUM_SHOTS=4)).fingerprint


def test_a_copy_in_root_is_read(load, tmp_path):
    shutil.copytree(ICONS_FOLDER, tmp_path / "icons")
    data = load(["flat"], ["flat"], root=tmp_path)
    assert all(item.impath.startswith(str(tmp_path / "icons")) for item in data.train_x)
    assert data_of(data).fingerprint == data_of(load(["flat"], ["flat"])).fingerprint
    (tmp_path / "icons" / "flat" / "cake" / "marketeq--cake.png").unlink(missing_ok=True)
    lost = data.test[0].impath
    (tmp_path / "icons" / lost[len(str(tmp_path / "icons")) + 1 :]).unlink()
    with pytest.raises(FileNotFoundError, match=r"pictures of .*split\.csv are missing"):
        load(["flat"], ["flat"], root=tmp_path)


def test_an_empty_root_means_the_package(load, tmp_path):
    assert load(["flat"], ["flat"], root=tmp_path).test[0].impath.startswith(str(ICONS_FOLDER))


def test_a_broken_split_file_is_named_with_its_line(load, tmp_path):
    shutil.copy(ICONS_FOLDER / "manifest.json", tmp_path)
    (tmp_path / "split.csv").write_text("path,domain,class,split,group\nemoji/x/y.png,emoji,cake,tset,g\n")
    with pytest.raises(ValueError, match=r"split\.csv, line 2: .*'tset'"):
        load(["emoji"], ["emoji"], root=tmp_path)


def test_pictures_open_as_square_rgb(load):
    for item in load(["emoji"], ["emoji"]).test[::40]:
        with Image.open(item.impath) as image:
            assert image.size == (64, 64) and image.convert("RGB").getextrema()[0][1] > 0
