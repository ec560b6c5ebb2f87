"""TerraIncognita: DomainBed's folders, and the original release that its program makes them of.

Covers: the golden tree of that program on a fixture with several boxes, two kept classes, dropped classes, images
without annotation, locations as texts and numbers, and an image in two files, read from the release (annotations beside
the images, in their folder, in one of the older files) and from the folders, with equal images; random annotations
against a naive loop; images of two classes under `domainbed` and `single`; labels where a location lacks a class; the
split of each trial; both counts, known totals and numbers of locations; the name of `empty` in prompts; every fault by
its sentence; a run on either layout with equal predictions; `data verify`.
"""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dassl_clip.cli import data as data_command
from dassl_clip.cli import train
from dassl_clip.datasets import TerraIncognita
from dassl_clip.datasets.domainbed import environments
from dassl_clip.datasets.spec import load_spec
from dassl_clip.datasets.verify import ERROR, WARNING, verify
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import read_record

FIXTURES = Path(__file__).parents[1] / "fixtures/goldens"
GOLDEN = json.loads((FIXTURES / "terra_incognita.json").read_text())
SPLITS = json.loads((FIXTURES / "domainbed_splits.json").read_text())["real"]
IMAGES, ANNOTATIONS = "eccv_18_all_images_sm", "eccv_18_annotation_files"
CLASSES = ["bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"]
LOCATIONS = ["location_100", "location_38", "location_43", "location_46"]


def together(files) -> dict:
    """All annotation files as one."""
    return {
        name: [row for data in files.values() for row in data[name]] for name in ("images", "annotations", "categories")
    }


@pytest.fixture
def release(tmp_path, draw):
    """The release in a folder: release(where, files=..., images=...) gives the root."""

    def make(where="terra_incognita", files=GOLDEN["files"], annotations=ANNOTATIONS, images=GOLDEN["image_files"]):
        home = tmp_path / "release" / where
        for name in images:
            draw(home / IMAGES / name)
        (home / annotations).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (home / annotations / name).write_text(json.dumps(data))
        return tmp_path / "release"

    return make


@pytest.fixture
def folders(tmp_path, draw):
    """DomainBed's folders of a tree: location -> class -> files."""

    def make(tree=GOLDEN["tree"]):
        for location, classes in tree.items():
            for name, files in classes.items():
                for file in files:
                    draw(tmp_path / "folders/terra_incognita" / location / name / file)
        return tmp_path / "folders"

    return make


def tree_of(data, items) -> dict:
    """location -> class -> files, of the images of a loader."""
    tree: dict = {}
    for item in items:
        location, name, file = data.target_domains[item.domain], CLASSES[item.label], Path(item.impath).name
        tree.setdefault(location, {}).setdefault(name, []).append(file)
    return {location: {name: sorted(files) for name, files in classes.items()} for location, classes in tree.items()}


def whole(root, config, **options):
    """All images of all locations."""
    return TerraIncognita(config(root, LOCATIONS, LOCATIONS, PROTOCOL="all-images", **options))


LAYOUTS = {
    "as DomainBed's program has it": {},
    "beside the images": {"annotations": "."},
    "in the folder of the images": {"annotations": IMAGES},
    "one file": {"files": {"CaltechCameraTrapsECCV18.json": together(GOLDEN["files"])}, "annotations": "."},
    "the later file": {"files": {"caltech_images_20210113.json": together(GOLDEN["files"])}, "annotations": "."},
    "the folder itself": {"where": "."},
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_tree_of_domainbeds_program(layout, release, folders, config):
    data = whole(release(**LAYOUTS[layout]), config)
    assert tree_of(data, data.test) == GOLDEN["tree"]
    copied = whole(folders(), config)
    assert tree_of(copied, copied.test) == GOLDEN["tree"]
    assert data.listing == copied.listing
    assert data.classnames == copied.classnames and data.num_classes == 10


def naive_tree(data) -> dict:
    """What is copied where: a loop over images, and for each over all annotations."""
    names = {row["id"]: row["name"] for row in data["categories"]}
    tree: dict = {}
    for image in data["images"]:
        for row in data["annotations"]:
            location, name = f"location_{image['location']}", names[row["category_id"]]
            if row["image_id"] == image["id"] and location in LOCATIONS and name in CLASSES:
                files = tree.setdefault(location, {}).setdefault(name, [])
                files += [] if image["file_name"] in files else [image["file_name"]]
    return {location: {name: sorted(files) for name, files in classes.items()} for location, classes in tree.items()}


@pytest.mark.parametrize("seed", range(3))
def test_random_annotations(seed, release, config):
    draw = random.Random(seed)
    categories = [
        {"id": 10 * number + seed, "name": name} for number, name in enumerate([*CLASSES, "car", "deer", "fox"])
    ]
    places = [38, "38", 43, "43", 46, "100", 100, 7, "33"]
    images = [{"id": f"i{k}", "file_name": f"{k:04x}.jpg", "location": draw.choice(places)} for k in range(150)]
    rows = [
        {"image_id": image["id"], "category_id": draw.choice(categories)["id"]}
        for image in images
        for _ in range(draw.choice([0, 1, 1, 1, 2, 3]))
    ]
    draw.shuffle(rows)
    made = {"images": images, "annotations": rows, "categories": categories}
    root = release(files={"CaltechCameraTrapsECCV18.json": made}, images=[image["file_name"] for image in images])
    data, expected = whole(root, config), naive_tree(made)
    assert tree_of(data, data.test) == expected
    single = whole(root, config, TERRAINCOGNITA="single")
    for location, classes in expected.items():
        counts = Counter(file for files in classes.values() for file in files)
        alone = {name: [file for file in files if counts[file] == 1] for name, files in classes.items()}
        assert tree_of(single, single.test)[location] == {name: files for name, files in alone.items() if files}


@pytest.mark.parametrize("layout", ["release", "folders"])
def test_both_counts(layout, request, config):
    root = request.getfixturevalue(layout)()
    both, single = whole(root, config), whole(root, config, TERRAINCOGNITA="single")
    assert len(both.test) == 46 and len({Path(item.impath).name for item in both.test}) == 35
    files = Counter((item.domain, Path(item.impath).name) for item in both.test)
    assert sorted((item.domain, Path(item.impath).name) for item in single.test) == sorted(
        key for key, count in files.items() if count == 1
    )
    each = {name: sum(map(len, GOLDEN["tree"][name].values())) for name in LOCATIONS}
    told = ", ".join(f"{name} {count}" for name, count in each.items())
    assert f"(numbers of images: domainbed 46 ({told}); single {len(single.test)} (" in both.protocol
    assert "images of two classes: domainbed" in both.protocol and "images of two classes: single" in single.protocol


def test_labels_go_by_name(release, config, caplog):
    data = TerraIncognita(config(release(), ["location_43", "L100"], ["46"]))
    names = {item.label: item.classname for items in (data.train_x, data.val, data.test) for item in items}
    assert all(names[label] == data.classnames[label] for label in names)
    assert {item.label for item in data.test} == {CLASSES.index(name) for name in ("bird", "dog", "rabbit")}
    assert "location_46 has no images of bobcat, cat, coyote, empty, opossum, raccoon, squirrel" in caplog.text


def test_the_empty_class_in_prompts(tmp_path, release, config, caplog):
    caplog.set_level("INFO")
    root = release()
    data = whole(root, config)
    assert data.classnames == [*CLASSES[:5], "scene without animals", *CLASSES[6:]]
    assert 'class "empty" is said "scene without animals" in prompts' in data.protocol
    assert "empty = scene without animals" in caplog.text
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    plain = whole(root, config, CLASSNAMES=str(tmp_path / "names.txt"))
    assert plain.classnames == CLASSES and "names.txt" in plain.protocol
    assert plain.listing == data.listing


@pytest.mark.parametrize("layout", ["release", "folders"])
@pytest.mark.parametrize("trial", [0, 1])
def test_domainbeds_split(layout, trial, request, config):
    root = request.getfixturevalue(layout)()
    asked = config(root, ["location_43", "location_38"], ["location_100"], PROTOCOL="domainbed", TRIAL=trial)
    data = TerraIncognita(asked)
    seeds = {
        case["folder"]: case["seed"] for case in SPLITS if case["trial_seed"] == trial and "Terra" in case["dataset"]
    }

    def naive(location):
        files = [(name, file) for name, files in sorted(GOLDEN["tree"][location].items()) for file in files]
        order = list(range(len(files)))
        np.random.RandomState(seeds[location]).shuffle(order)
        held = int(0.2 * len(files))
        return [[files[index] for index in part] for part in (order[:held], order[held:])]

    def found(items):
        return [(CLASSES[item.label], Path(item.impath).name) for item in items]

    assert found(data.val) == naive("location_43")[0] + naive("location_38")[0]
    assert found(data.train_x) == naive("location_43")[1] + naive("location_38")[1]
    assert found(data.test) == naive("location_100")[1]


def test_the_numbers_of_domainbeds_split():
    spec = load_spec("terra_incognita")
    cases = {(case["env"], case["folder"], case["length"]) for case in SPLITS if "Terra" in case["dataset"]}
    assert {(k, name, spec.images[name]) for k, name in enumerate(environments(spec))} == cases
    assert sum(spec.images.values()) == 24788


def numbered(counts: dict) -> dict:
    """A tree with so many images at each location, of all ten classes."""
    return {
        location: {name: [f"{location}-{k}.jpg" for k in range(label, count, 10)] for label, name in enumerate(CLASSES)}
        for location, count in counts.items()
    }


def touch(root: Path, tree: dict) -> Path:
    (root / "byte").write_bytes(b"x")
    for location, classes in tree.items():
        for name, files in classes.items():
            (root / "terra_incognita" / location / name).mkdir(parents=True)
            for file in files:
                os.link(root / "byte", root / "terra_incognita" / location / name / file)
    return root


KNOWN = {"location_100": 4879, "location_38": 9767, "location_43": 4020, "location_46": 6122}


def test_known_numbers(tmp_path, config):
    root = touch(tmp_path, numbered(KNOWN))

    def verified(total):
        report = verify(TerraIncognita, config(root, [], []))
        assert sum(sum(count.images.values()) for count in report.counts) == total
        assert f"domainbed {total:,} (" in report.layouts[0] and len(report.layouts) == 1
        warnings = [finding.text for finding in report.findings if finding.level == WARNING]
        return [count.published for count in report.counts], report.layouts[0], warnings

    published, layout, warnings = verified(24788)
    assert published == list(KNOWN.values()) and not warnings
    assert ", as CaltechCameraTrapsECCV18.json gives)" in layout
    (moved,) = (root / "terra_incognita/location_46").glob("*/location_46-6121.jpg")
    kept = moved.rename(tmp_path / "kept")
    published, layout, warnings = verified(24787)
    assert published == list(KNOWN.values()) and " gives)" not in layout and len(warnings) == 2
    assert "24,787 images, where 24,788 (CaltechCameraTrapsECCV18.json) or 24,330 (cal" in warnings[0]
    assert "differs in location_46 6121 (6122)" in warnings[1]
    kept.rename(moved)
    for number in range(458):  # 24,330 images, whose locations are printed nowhere
        next((root / "terra_incognita/location_38").glob(f"*/location_38-{number}.jpg")).unlink()
    published, layout, warnings = verified(24330)
    assert published == [None] * 4 and not warnings and ", as caltech_images_20210113.json gives)" in layout


def test_the_five_files_have_no_known_number(release, config):
    findings = verify(TerraIncognita, config(release(), [], [])).findings
    assert not [finding for finding in findings if "number" in finding.text or finding.level == ERROR]
    root = release("older/terra", {"CaltechCameraTrapsECCV18.json": together(GOLDEN["files"])}) / "older"
    texts = [finding.text for finding in verify(TerraIncognita, config(root, [], [])).findings]
    assert "TerraIncognita: 46 images, where 24,788 (CaltechCameraTrapsECCV18.json) are known" in texts


def without(name):
    return [file for file in GOLDEN["image_files"] if file != name]


def changed(table, row, **facts):
    data = together(json.loads(json.dumps(GOLDEN["files"])))
    data[table][row] = {key: value for key, value in (data[table][row] | facts).items() if value is not None}
    return {"CaltechCameraTrapsECCV18.json": data}


FAULTS = {
    "a missing image": (
        {"images": without(GOLDEN["with_one_image_missing"]["missing"])},
        r"1 of 35 images that .* name at the four locations are not in .*/eccv_18_all_images_sm, first: 090b20bb",
    ),
    "no annotations": (
        {"files": {}},
        r"holds eccv_18_all_images_sm/, but no annotations \(CaltechCameraTrapsECCV18.json or .*beside that",
    ),
    "one of five": (
        {"files": {"train_annotations.json": {}}},
        r"but no cis_test_annotations.json, cis_val_annotations.json, trans_test_annotations.json, trans_val_anno",
    ),
    "two constructions": (
        {"files": {"CaltechCameraTrapsECCV18.json": {}, "caltech_images_20210113.json": {}}},
        r"annotations of 2 constructions, which give different images .*: move all but one away",
    ),
    "no JSON": (
        {"files": {"CaltechCameraTrapsECCV18.json": "{"}},
        r"ECCV18.json is no annotation file with images, ann",
    ),
    "no table": ({"files": {"CaltechCameraTrapsECCV18.json": {"images": []}}}, r"no annotation file .*'annotations'"),
    "no location": ({"files": changed("images", 3, location=None)}, r"lacks what it needs \(KeyError\('location'\)\)"),
    "no category": (
        {"files": changed("annotations", 5, category_id=12345)},
        r"lacks what it needs \(KeyError\(12345\)\)",
    ),
    "no animals": (
        {"files": {"CaltechCameraTrapsECCV18.json": {"images": [], "annotations": [], "categories": []}}},
        r"there is no image of the ten classes at location_38",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults(fault, release, config):
    options, message = FAULTS[fault]
    root = release(**options)
    before = sorted(root.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        TerraIncognita(config(root, ["location_38"], ["location_100"]))
    assert "\n" not in str(caught.value) and sorted(root.rglob("*")) == before


def test_no_folder_at_all(tmp_path, config):
    with pytest.raises(FileNotFoundError, match=r"Looked for the folders location_100, .* itself, terra_incognita/"):
        TerraIncognita(config(tmp_path, ["location_38"], ["location_100"]))


def test_two_classes_are_not_trained_on_and_tested(folders, config):
    root = folders()
    for protocol in ("dassl", "holdout"):
        with pytest.raises(ValueError, match=r"location_38 is trained on and tested, and 10 of its entries .* single"):
            TerraIncognita(config(root, ["location_38"], ["location_38"], PROTOCOL=protocol))
    data = TerraIncognita(config(root, ["location_38"], ["location_38"], TERRAINCOGNITA="single"))
    assert not {i.impath for i in data.train_x} & {i.impath for i in data.test}


def test_what_is_left_out_is_counted(release, config, caplog):
    caplog.set_level("INFO")
    whole(release(), config)
    data = together(GOLDEN["files"])
    here = {row["id"] for row in data["images"] if f"location_{row['location']}" in LOCATIONS}
    annotated = {row["image_id"] for row in data["annotations"]}
    used = {
        file.removesuffix(".jpg") for classes in GOLDEN["tree"].values() for files in classes.values() for file in files
    }
    assert f"{len(here - annotated)} images of the four locations have no annotation" in caplog.text
    assert (
        f"{len((here & annotated) - used)} images of the four locations are annotated with other classes" in caplog.text
    )


def test_the_release_is_read_beside_half_made_folders(release, config, caplog):
    caplog.set_level("INFO")
    root = release()
    (root / "terra_incognita/location_38/bird").mkdir(parents=True)
    shutil.copy(root / "terra_incognita" / IMAGES / without("")[0], root / "terra_incognita/location_38/bird")
    data = whole(root, config)
    assert tree_of(data, data.test) == GOLDEN["tree"]
    assert "the original release is read, and not location_38 beside it" in caplog.text


def test_a_run_reads_both_layouts_alike(tmp_path, release, folders, tiny_clip):
    """An image under two labels is tested twice, from one file or from two."""
    found = {}
    for name, root in (("release", release()), ("folders", folders())):
        words = ["--trainer", "LinearProbe", "--dataset-config-file", "configs/datasets/terra_incognita.yaml"]
        words += [
            "--root",
            str(root),
            "--seed",
            "1",
            "--source-domains",
            "location_38",
            "--target-domains",
            "location_100",
        ]
        words += ["--output-dir", str(tmp_path / name), "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
        words += ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "DATASET.PROTOCOL", "domainbed"]
        assert train.main(words) == 0
        record, shown = read_record(tmp_path / name), read_predictions(tmp_path / name)
        rows = sorted(
            zip((Path(path).name for path in shown.paths.tolist()), shown.labels.tolist(), shown.top[:, 0].tolist())
        )
        found[name] = record["metrics"]["test"], record["data_fingerprint"], rows
        assert record["metrics"]["test"]["total"] == 19 - int(0.2 * 19)
        assert record["test_part"] == "in" and "scene without animals" in record["protocol"]
    assert found["release"] == found["folders"]


def test_an_image_of_two_classes_is_no_copy_of_itself(release, config):
    root = release()
    for number, path in enumerate((root / "terra_incognita" / IMAGES).iterdir()):
        path.write_bytes(b"%06d" % number)  # of one size, so that all are compared
    texts = [finding.text for finding in verify(TerraIncognita, config(root, [], []), duplicates=True).findings]
    assert "no file is a copy of another" in texts


def test_verify_prints_both_counts(release, capsys):
    code = data_command.main(["verify", "terra_incognita", "--root", str(release())])
    out = capsys.readouterr().out
    assert code == 1  # classes that locations lack
    assert (
        out.count("numbers of images: domainbed 46 (location_100 19, location_38 15, location_43 8, location_46 4)")
        == 1
    )
    assert "single 24 (" in out and "5 of 10" in out and "two domains" not in out
