"""Paths, separators and encodings of the files that name images.

Covers: `./a`, `a//b`, `a\\b`, `a/../a`, absolute paths below the root and below a link to it, and paths above the csv,
in manifests, split files and split lists; tabs and semicolons; BOM and CRLF; `metadata.csv` of the hub; one class in
two spellings, domains that are numbers.
"""

import json
import os

import pytest

from dassl_clip.datasets import PACS, DescribableTextures, FGVCAircraft, FolderDomains, Manifest
from dassl_clip.results.run_data import data_of

SPELLINGS = ["./{}", "{}//", "back\\slash", "x/../{}", "absolute", "absolute by a link", " {} "]


def spelled(path, kind, root, link):
    if kind.startswith("absolute"):
        return f"{link if kind.endswith('link') else root}/{path}"
    if kind == "back\\slash":
        return path.replace("/", "\\")
    return path.replace("/", "//") if kind == "{}//" else kind.format(path)


def same_files(items, others):
    return [(os.path.realpath(item.impath), item.label) for item in items] == [
        (os.path.realpath(item.impath), item.label) for item in others
    ]


@pytest.fixture
def images(tmp_path, draw):
    root = tmp_path / "data"
    for name in ("cat", "dog"):
        for number in range(5):
            draw(root / name / f"{number}.jpg")
    (tmp_path / "link").symlink_to(root)
    return root


def write_manifest(path, rows, header="path,class", comma=","):
    path.write_text("\n".join([header, *rows]))
    return path


@pytest.mark.parametrize("kind", SPELLINGS)
def test_4_4_paths_of_a_manifest(kind, images, config):
    """24 of 24 images were missing (row 4.4)."""
    plain = [f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(5)]
    write_manifest(images / "plain.csv", [f"{path},{path[:3]}" for path in plain])
    expected = Manifest(config(images, [], [], MANIFEST="plain.csv"))
    for root in (images, images.parent / "link"):
        rows = [f"{spelled(path, kind, images, images.parent / 'link')},{path[:3]}" for path in plain]
        write_manifest(images / "other.csv", rows)
        data = Manifest(config(root, [], [], MANIFEST="other.csv"))
        assert (data_of(data).fingerprint == data_of(expected).fingerprint) or "link" in kind
        assert same_files(data.train_x, expected.train_x) or "link" in kind
        assert len(data.test) == len(expected.test)


def test_4_4_paths_above_a_manifest(images, config):
    (images / "lists").mkdir()
    write_manifest(images / "lists/m.csv", [f"../{n}/{i}.jpg,{n}" for n in ("cat", "dog") for i in range(5)])
    assert len(Manifest(config("", [], [], MANIFEST=str(images / "lists/m.csv"))).test) == 2
    assert len(Manifest(config(images, [], [], MANIFEST=str(images / "lists/m.csv"))).test) == 2


@pytest.mark.parametrize("kind", SPELLINGS)
def test_4_4_paths_of_a_split_file(kind, tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, "dtd")
    expected = DescribableTextures(config(tmp_path, [], []))
    (tmp_path / "link").symlink_to(tmp_path / "dtd/images")
    other = {
        part: [[spelled(p, kind, tmp_path / "dtd/images", tmp_path / "link"), *rest] for p, *rest in entries]
        for part, entries in rows.items()
    }
    (tmp_path / "split.json").write_text(json.dumps(other), encoding="utf-8-sig")
    data = DescribableTextures(config(tmp_path, [], [], SPLIT_FILE=str(tmp_path / "split.json")))
    assert (data_of(data).fingerprint == data_of(expected).fingerprint) or "link" in kind
    assert same_files(data.train_x, expected.train_x) and same_files(data.test, expected.test)


@pytest.mark.parametrize("kind", [*SPELLINGS, "tabs", "crlf"])
def test_4_4_paths_of_split_lists(kind, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path / "data")
    expected = PACS(config(root, ["photo"], ["sketch"]))
    (tmp_path / "link").symlink_to(root / "pacs/images")
    for path in (root / "pacs/splits").glob("*_kfold.txt"):
        lines = [line.rpartition(" ") for line in path.read_text().splitlines()]
        if kind == "tabs":
            lines = [f"{file}\t{label}" for file, _, label in lines]
        elif kind == "crlf":
            lines = [f"{file} {label}\r" for file, _, label in lines]
        else:
            lines = [f"{spelled(file, kind, root / 'pacs/images', tmp_path / 'link')} {n}" for file, _, n in lines]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert data_of(PACS(config(root, ["photo"], ["sketch"]))).fingerprint == data_of(expected).fingerprint


@pytest.mark.parametrize(("mark", "name"), [("\t", "tabs"), (";", "semicolons"), ("|", "bars")])
def test_4_4_other_separators_are_named(mark, name, images, tmp_path, pacs_tree, config):
    write_manifest(images / "manifest.csv", [f"cat/0.jpg{mark}cat"], f"path{mark}class")
    with pytest.raises(ValueError, match=f"manifest.csv separates its columns by {name}; expected are commas"):
        Manifest(config(images, [], []))
    if mark == "\t":
        return  # split lists may have tabs
    root = pacs_tree(tmp_path / "pacs")
    path = root / "pacs/splits/photo_train_kfold.txt"
    path.write_text(path.read_text().replace(" ", mark))
    with pytest.raises(ValueError, match=rf'line 1: expected "domain/class/file label" with a blank .* not "\{mark}"'):
        PACS(config(root, ["photo"], ["sketch"]))


def test_4_4_metadata_of_the_hub(images, config, caplog):
    """`file_name,label[,domain]` is a manifest too (row 4.4)."""
    rows = [(f"{name}/{number}.jpg", name) for name in ("dog", "cat") for number in range(5)]
    write_manifest(images / "metadata.csv", [f"{path},{name}" for path, name in rows], "file_name,label")
    data = Manifest(config(images, [], []))
    assert data.classnames == ["cat", "dog"] and len(data.test) == 2
    text = [f"{path},{name},{'day' if path[4] < '3' else 'night'},a picture" for path, name in rows]
    write_manifest(images / "metadata.csv", text, "file_name,label,domain,text")
    data = Manifest(config(images, ["day"], ["night"]))
    assert data.domains == ["day", "night"] and len(data.test) == 4
    write_manifest(images / "manifest.csv", [f"{path},{name}" for path, name in rows[:5]])
    assert Manifest(config(images, [], [])).classnames == ["dog"]  # a manifest.csv comes first
    write_manifest(images / "manifest.csv", [f"{path},{name},x" for path, name in rows], "path,class,class")
    with pytest.raises(ValueError, match="names a column twice: path, class, class"):
        Manifest(config(images, [], []))


def test_4_4_tabs_in_the_lists_of_aircraft(tmp_path, config):
    from dassl_clip.datasets.spec import load_spec

    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    for start, part in enumerate(("train", "val", "test")):
        lines = []
        for label, name in enumerate(load_spec("fgvc_aircraft").classes):
            (folder / f"images/{start}{label:06d}.jpg").touch()
            lines.append(f"{start}{label:06d}\t{name}\r")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines))
    assert len(FGVCAircraft(config(tmp_path, [], [])).test) == 100


@pytest.mark.parametrize("given", [(0, 15), ("0", "15"), [0, "15"]])
def test_4_6_domains_that_are_numbers(given, tmp_path, draw, config):
    for domain in ("0", "15", "30"):
        for name in ("cat", "dog"):
            for number in range(5):
                draw(tmp_path / domain / name / f"{number}.jpg")
    data = FolderDomains(config(tmp_path, given, [30]))
    assert (data.source_domains, data.target_domains) == (["0", "15"], ["30"])
    assert len(data.test) == 10 and {item.domain for item in data.train_x} == {0, 1}
    with pytest.raises(ValueError, match=r'FolderDomains has no domain "45"; it has 0, 15, 30'):
        FolderDomains(config(tmp_path, given, [45]))
