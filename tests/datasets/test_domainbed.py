"""DATASET.PROTOCOL domainbed: the images of DomainBed's own runs, by name.

Covers: the golden index lists of `split_dataset` (small ones whole, those of the published sizes by their hash) and the
order of domains of all data sets that DomainBed has; PACS of the published size, image by image, with its damaged file
and split lists beside it; parts of sources and targets under each TEST_PART; what moves a split (the trial, nothing
else); classes and files in the order of `ImageFolder` (capitals, spellings, a class that a domain lacks); shots; the
icons, folders, lists and copies of the hub; what is refused, and what is warned of.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dassl_clip.datasets import PACS, VLCS, DomainNet, EuroSAT, FolderDomains, Icons, Manifest, OfficeHome
from dassl_clip.datasets.domainbed import environments, split_indices
from dassl_clip.datasets.spec import load_spec
from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.results.domainbed import seed_hash
from dassl_clip.results.run_data import data_of

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/goldens/domainbed_splits.json").read_text())
FILES = {"PACS": "pacs", "VLCS": "vlcs", "OfficeHome": "office_home", "DomainNet": "domainnet"}


def digest(indices) -> str:
    return hashlib.sha256(np.array(indices, "<i4").tobytes()).hexdigest()


def paths(items) -> list[str]:
    return [item.impath for item in items or []]


def image_folder(domain: Path) -> list[str]:
    """A domain as torchvision lists it: sorted class folders, the sorted files of each."""
    return [str(file) for folder in sorted(domain.iterdir()) for file in sorted(folder.iterdir())]


def naive(domain: Path, place: int, trial: int) -> tuple[list[str], list[str]]:
    """The out part and the in part of a folder, written as in the authors' paper."""
    files, keys = image_folder(domain), list(range(len(image_folder(domain))))
    text = str((trial, place)).encode()
    np.random.RandomState(int(hashlib.md5(text).hexdigest(), 16) % (2**31)).shuffle(keys)
    n = int(0.2 * len(files))
    return [files[key] for key in keys[:n]], [files[key] for key in keys[n:]]


@pytest.mark.parametrize("case", GOLDEN["full"], ids=lambda case: f"{case['length']} {case['seed']}")
def test_the_index_lists_of_the_authors(case):
    assert split_indices(case["length"], case["n"], case["seed"]) == (case["first"], case["rest"])


def test_the_index_lists_of_published_sizes():
    for case in GOLDEN["real"]:
        assert seed_hash(case["trial_seed"], case["env"]) == case["seed"]
        out, rest = split_indices(case["length"], int(case["length"] * 0.2), case["seed"])
        assert (digest(out), digest(rest)) == (case["out_sha256"], case["in_sha256"])
        if file := FILES.get(case["dataset"]):
            spec = load_spec(file)
            domain = environments(spec)[case["env"]]
            assert spec.domain_keys()[case["folder"].replace("_", "").replace(" ", "").lower()] == domain
            assert spec.images[domain] == case["length"]
    assert {case["dataset"].split(" ")[0] for case in GOLDEN["real"]} == {*FILES, "TerraIncognita"}


@pytest.fixture(scope="module")
def whole_pacs(tmp_path_factory):
    """PACS with the published number of images in each class, and its damaged file."""
    root = tmp_path_factory.mktemp("pacs")
    for domain, entry in load_spec("pacs").details.items():
        for name, size in entry["per_class"].items():
            folder = root / "PACS" / domain / name
            folder.mkdir(parents=True)
            for number in range(size):
                (folder / f"{'n02103406_4068' if domain == 'sketch' else 'pic'}-{number}.jpg").touch()
    (root / "PACS/sketch/dog/n02103406_4068-1.jpg").rename(root / "PACS/sketch/dog/n02103406_4068-1.png")
    return root


@pytest.mark.parametrize(("place", "domain"), [*enumerate(["art_painting", "cartoon", "photo", "sketch"])])
@pytest.mark.parametrize("trial", [0, 2])
def test_pacs_has_the_images_of_domainbed(place, domain, trial, whole_pacs, config):
    other = "photo" if domain != "photo" else "sketch"
    data = PACS(config(whole_pacs, [domain], [other], PROTOCOL="domainbed", TRIAL=trial, SEED=trial + 5))
    listed = image_folder(whole_pacs / "PACS" / domain)
    golden = next(
        case for case in GOLDEN["real"] if (case["dataset"], case["env"], case["trial_seed"]) == ("PACS", place, trial)
    )
    for items, part in ((data.val, "out"), (data.train_x, "in")):
        indices = [listed.index(path) for path in paths(items)]
        damaged = [path for path in listed if path.endswith("4068-1.png")]
        if domain == "sketch" and len(indices) < golden[f"n_{part}"]:  # it counts in the draw, and is left out then
            whole = (naive(whole_pacs / "PACS" / domain, place, trial))[part == "in"]
            indices = [listed.index(path) for path in whole]
            assert [path for path in whole if path not in damaged] == paths(items)
        assert digest(indices) == golden[f"{part}_sha256"]
    assert len(data.train_x) + len(data.val) == len(listed) - (domain == "sketch")


@pytest.mark.parametrize(("test_part", "parts"), [("in", [1]), ("out", [0]), ("all", [1, 0])])
@pytest.mark.parametrize("layout", ["PACS", "pacs/images"])
def test_what_sources_and_targets_give(test_part, parts, layout, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, layout, size=3)
    data = PACS(config(root, ["sketch", "cartoon"], ["photo"], PROTOCOL="domainbed", TEST_PART=test_part, TRIAL=1))
    split = {
        name: naive(root / layout / name, place, 1) for place, name in ((1, "cartoon"), (2, "photo"), (3, "sketch"))
    }
    assert paths(data.train_x) == split["sketch"][1] + split["cartoon"][1]
    assert paths(data.val) == split["sketch"][0] + split["cartoon"][0]
    assert paths(data.test) == [path for part in parts for path in split["photo"][part]]
    told = {"in": "in part (80 %)", "out": "out part (20 %)", "all": "in part (80 %) + out part (20 %)"}[test_part]
    assert f"split by DomainBed's rule for trial 1; protocol domainbed; test part {test_part}; " in data.protocol
    assert f"; val: out part (20 %) of sketch, cartoon; test: {told} of photo; " in data.protocol
    assert data.test_part == test_part and data.drawn_tests == (test_part != "all")


def test_the_trial_alone_moves_a_split(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS", size=3)

    def tested(sources, **options):
        return paths(PACS(config(root, sources, ["art_painting"], PROTOCOL="domainbed", **options)).test)

    first = tested(["photo"])
    assert first == tested(["sketch", "cartoon"], SEED=9, SPLIT_SEED=4, NUM_SHOTS=1)
    assert len({tuple(tested(["photo"], TRIAL=trial)) for trial in range(3)}) == 3


def test_classes_and_files_in_the_order_of_image_folder(tmp_path, office_home_tree, config):
    root = office_home_tree(tmp_path, "OfficeHomeDataset_10072016", ["Art", "Real World"], size=3)
    data = OfficeHome(config(root, ["art"], ["real_world"], PROTOCOL="domainbed"))
    home = root / "OfficeHomeDataset_10072016"
    assert paths(data.train_x) == naive(home / "Art", 0, 0)[1]
    assert paths(data.test) == naive(home / "Real World", 3, 0)[1]
    lower = tmp_path / "lower"
    for folder in (home / "Art").iterdir():  # TV stands before Table by its published name, tv behind table
        (lower / "office_home/art" / folder.name.lower()).parent.mkdir(parents=True, exist_ok=True)
        (lower / "office_home/art" / folder.name.lower()).symlink_to(folder)
    (lower / "office_home/real_world").symlink_to(home / "Real World")
    renamed = OfficeHome(config(lower, ["art"], ["real_world"], PROTOCOL="domainbed"))
    assert data_of(renamed).fingerprint == data_of(data).fingerprint


@pytest.mark.parametrize("lists", ["", "splits"])
def test_domainnet_by_name_and_not_by_label(lists, tmp_path, domainnet_tree, config):
    root = domainnet_tree(tmp_path, "domain_net", ["clipart", "real"], lists)
    data = DomainNet(config(root, ["clipart"], ["real"], PROTOCOL="domainbed"))
    assert paths(data.val) == naive(root / "domain_net/clipart", 0, 0)[0]
    assert paths(data.test) == naive(root / "domain_net/real", 4, 0)[1]


def test_folders_of_ones_own(tmp_path, grow, config):
    root = grow(tmp_path, "Zoo/cat", "Zoo/Dog", "b/cat", "b/Dog", "b/owl", "a/owl", "a/cat", size=7)
    data = FolderDomains(config(root, ["b", "Zoo"], ["a"], PROTOCOL="domainbed", TEST_PART="out"))
    assert paths(data.train_x) == naive(root / "b", 2, 0)[1] + naive(root / "Zoo", 0, 0)[1]
    assert paths(data.test) == naive(root / "a", 1, 0)[0]
    lines = [f"{path.relative_to(root)},{path.parent.name},{path.parts[-3]}" for path in sorted(root.rglob("*.jpg"))]
    (root / "manifest.csv").write_text("\n".join(["path,class,domain", *lines]))
    listed = Manifest(config(root, ["b", "Zoo"], ["a"], PROTOCOL="domainbed", TEST_PART="out"))
    assert [paths(items) for items in (listed.train_x, listed.val, listed.test)] == [
        paths(items) for items in (data.train_x, data.val, data.test)
    ]


def test_the_icons(config):
    data = Icons(config("", ["flat", "line"], ["emoji"], PROTOCOL="domainbed", TRIAL=2))
    assert paths(data.train_x) == naive(ICONS_FOLDER / "flat", 1, 2)[1] + naive(ICONS_FOLDER / "line", 2, 2)[1]
    assert paths(data.test) == naive(ICONS_FOLDER / "emoji", 0, 2)[1]


def test_shots_come_from_the_in_part_and_validate_on_the_out_part(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS", size=20)
    data = PACS(config(root, ["photo"], ["sketch"], PROTOCOL="domainbed", NUM_SHOTS=2))
    out, rest = naive(root / "PACS/photo", 2, 0)
    assert Counter(item.label for item in data.train_x) == dict.fromkeys(range(7), 2)
    assert {*paths(data.train_x)} < {*rest} and {*paths(data.val)} <= {*out}
    assert paths(data.test) == naive(root / "PACS/sketch", 3, 0)[1]


def test_a_domain_that_is_source_and_target(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS")
    for part in ("in", "all"):
        with pytest.raises(
            ValueError, match=rf"TEST_PART {part} would test images of photo that are trained on: .* out"
        ):
            PACS(config(root, ["photo", "sketch"], ["photo"], PROTOCOL="domainbed", TEST_PART=part))
    data = PACS(config(root, ["photo"], ["photo"], PROTOCOL="domainbed", TEST_PART="out"))
    out, rest = naive(root / "PACS/photo", 2, 0)
    assert paths(data.test) == out and sorted(paths(data.train_x) + paths(data.val)) == sorted(rest)


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (
            PACS,
            {"TEST_PART": "out"},
            r"TEST_PART out and TRIAL 0 are of DomainBed's split, but .*PROTOCOL is dassl: use",
        ),
        (
            PACS,
            {"TRIAL": 2, "PROTOCOL": "holdout"},
            r"TEST_PART in and TRIAL 2 are of .* but DATASET.PROTOCOL is holdout",
        ),
        (PACS, {"TEST_PART": "both", "PROTOCOL": "domainbed"}, r'TEST_PART is "both"; it must be one of in, out, all'),
        (PACS, {"TRIAL": -1, "PROTOCOL": "domainbed"}, r"TRIAL is -1; it must be 0 or more"),
        (VLCS, {"VLCS_TEST": "full+test", "PROTOCOL": "domainbed"}, r"which DATASET.PROTOCOL domainbed draws anew"),
    ],
)
def test_what_is_refused(loader, options, message, tmp_path, pacs_tree, vlcs_tree, config):
    root = vlcs_tree(pacs_tree(tmp_path, "PACS", size=1), "dassl")
    with pytest.raises(ValueError, match=message):
        loader(config(root, ["P" if loader is PACS else "sun"], ["C"], **options))


def test_a_data_set_without_domains(tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat")
    with pytest.raises(ValueError, match=r"splits each domain, but EuroSAT has none: use DATASET.PROTOCOL holdout"):
        EuroSAT(config(tmp_path, [], [], PROTOCOL="domainbed"))


def test_other_files_than_domainbeds_are_told(tmp_path, whole_pacs, pacs_tree, vlcs_tree, config, caplog):
    PACS(config(pacs_tree(tmp_path, "PACS"), ["sketch"], ["photo"], PROTOCOL="domainbed"))
    assert "sketch/dog/n02103406_4068-1.png is not there; DomainBed counts it" in caplog.text
    VLCS(config(vlcs_tree(tmp_path, "dassl"), ["sun"], ["caltech"], PROTOCOL="domainbed"))
    assert "Dassl's release, have other names than DomainBed's: its split has other images" in caplog.text
    caplog.clear()
    PACS(config(whole_pacs, ["sketch"], ["photo"], PROTOCOL="domainbed"))
    VLCS(config(vlcs_tree(tmp_path / "b", "names"), ["sun"], ["caltech"], PROTOCOL="domainbed"))
    assert not [record for record in caplog.records if "DomainBed" in record.message and record.levelname == "WARNING"]


@pytest.mark.parametrize("named", [True, False])
def test_a_copy_of_the_hub(named, tmp_path, pacs_tree, config):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root = pacs_tree(tmp_path, "PACS", size=3)
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name if named else None}, "domain": path.parts[-3],
         "label": path.parts[-2]}
        for path in sorted((root / "PACS").rglob("*.*g"), reverse=True)
    ]  # fmt: skip
    (tmp_path / "copy/pacs/data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "copy/pacs/data/train-00000-of-00001.parquet")
    asked = config(tmp_path / "copy", ["sketch"], ["photo"], PROTOCOL="domainbed")
    if not named:
        with pytest.raises(ValueError, match=r"in the order of their names, but the rows of .* have no names of files"):
            PACS(asked)
        return
    assert (
        data_of(PACS(asked)).fingerprint
        == data_of(PACS(config(root, ["sketch"], ["photo"], PROTOCOL="domainbed"))).fingerprint
    )
