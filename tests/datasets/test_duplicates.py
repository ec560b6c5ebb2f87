"""One file counts once: not twice for two links, spellings or lines, not in two classes, not in training and test.

Covers: lists with lines three times, links to files and to folders in FolderClasses and FolderDomains with a hold-out
and with parts, absolute and relative paths in manifests and split files, domains that share files, `verify` across
domains; files in folders without links are never asked for.
"""

import json
import os
from collections import Counter

import pytest

from dassl_clip.datasets import PACS, DescribableTextures, FolderClasses, FolderDomains, Manifest
from dassl_clip.datasets.verify import verify


def paths(*lists):
    return [item.impath for items in lists for item in items or []]


def test_4_3_lines_three_times_count_once(tmp_path, pacs_tree, config, caplog):
    """A split list with each line three times (row 4.3)."""
    plain = PACS(config(pacs_tree(tmp_path / "a"), ["photo"], ["sketch"]))
    root = pacs_tree(tmp_path / "b")
    for path in (root / "pacs/splits").glob("*_kfold.txt"):
        path.write_text(path.read_text() * 3)
    data = PACS(config(root, ["photo"], ["sketch"]))
    for items, expected in ((data.train_x, plain.train_x), (data.val, plain.val), (data.test, plain.test)):
        assert len(items) == len(expected) and len(set(paths(items))) == len(items)
    assert "listed before and counted once, first: " in caplog.text


@pytest.mark.parametrize("parts", [("train/", "test/"), ("",)])
def test_4_3_links_to_files_count_once(parts, tmp_path, grow, config, caplog):
    root = grow(tmp_path, *(f"{part}{name}" for part in parts for name in ("cat", "dog")))
    for part in parts:
        (root / part / "cat" / "again.jpg").symlink_to("0.jpg")
        (root / part / "cat" / "more.jpg").symlink_to(root / part / "cat" / ".." / "cat" / "again.jpg")
    data = FolderClasses(config(root, [], []))
    found = [os.path.realpath(path) for path in set(paths(data.train_x, data.val, data.test))]
    assert max(Counter(found).values()) == 1 and len(found) == 10 * len(parts)
    assert f"{2 * len(parts)} files are listed before and counted once" in caplog.text


@pytest.mark.parametrize("kind", ["file", "class folder", "part"])
def test_4_3_a_file_in_two_parts_is_refused(kind, tmp_path, grow, config):
    root = grow(tmp_path, "train/cat", "train/dog", "test/dog")
    if kind == "part":
        (root / "val").symlink_to("train")
    elif kind == "class folder":
        (root / "test/cat").symlink_to(root / "train/cat")
    else:
        (root / "test/cat").mkdir()
        (root / "test/cat/x.jpg").symlink_to("../../train/cat/3.jpg")
    number = {"file": "1 file is", "class folder": "5 files are", "part": "10 files are"}[kind]
    with pytest.raises(ValueError, match=rf"^{number} in two parts.* train and .*/train/cat/\d.jpg = .*jpg; keep"):
        FolderClasses(config(root, [], []))


def test_4_3_a_file_in_two_classes_is_refused(tmp_path, grow, config):
    root = grow(tmp_path, "day/cat", "day/dog", "night/cat", "night/dog")
    (root / "night/dog/kitten.jpg").symlink_to(root / "night/cat/2.jpg")
    with pytest.raises(ValueError, match=r"1 file is in two classes.*cat/2.jpg = .*dog/kitten.jpg"):
        FolderDomains(config(root, ["day"], ["night"]))
    with pytest.raises(ValueError, match="in two classes"):
        FolderDomains(config(root, ["night"], ["day"]))


def test_4_3_domains_that_share_files(tmp_path, grow, config, caplog):
    root = grow(tmp_path, "day/cat", "day/dog", "night/cat", "night/dog", "rain/cat", "rain/dog")
    (root / "every").mkdir()
    for name in ("cat", "dog"):
        (root / "every" / name).mkdir()
        for domain in ("day", "night"):
            for number in range(5):
                (root / "every" / name / f"{domain}{number}.jpg").symlink_to(root / domain / name / f"{number}.jpg")
    with pytest.raises(ValueError, match=r"10 files are in two parts"):
        FolderDomains(config(root, ["every"], ["night"]))
    data = FolderDomains(config(root, ["rain"], ["day", "every"]))
    assert len(data.test) == 20 and "10 files are listed before and counted once" in caplog.text
    report = verify(FolderDomains, config(root, [], []))
    assert any("20 files are in two domains, first: " in finding.text for finding in report.findings)


def test_4_3_one_file_by_two_paths_in_a_manifest(tmp_path, grow, config, caplog):
    """The absolute and the relative path of one file, in train and in test (row 4.3)."""
    root = grow(tmp_path / "data", "a", "b")
    lines = [f"{name}/{number}.jpg,{name},{'test' if number > 3 else 'train'}" for name in "ab" for number in range(5)]
    for path in (f"{root}/a/1.jpg", "./a/1.jpg", "b/../a//1.jpg", "a\\1.jpg"):
        (root / "manifest.csv").write_text("\n".join(["path,class,split", *lines, f"{path},a,test"]))
        with pytest.raises(ValueError, match=r"lines 3 and 12 name the same image a/1.jpg"):
            Manifest(config(root, [], []))
    (root / "linked").symlink_to("a")
    (root / "manifest.csv").write_text("\n".join(["path,class,split", *lines, "linked/1.jpg,a,test"]))
    with pytest.raises(ValueError, match=r"1 file is in two parts.* train and test: .*a/1.jpg = .*linked/1.jpg"):
        Manifest(config(root, [], []))
    (root / "manifest.csv").write_text("\n".join(["path,class,split", *lines, "linked/1.jpg,b,train"]))
    with pytest.raises(ValueError, match=r'1 file is in two classes, first in "a" and "b": .*a/1.jpg = .*linked/1.jpg'):
        Manifest(config(root, [], []))
    (root / "manifest.csv").write_text("\n".join(["path,class,split", *lines, "linked/1.jpg,a,train"]))
    assert len(Manifest(config(root, [], [])).train_x) == 8
    assert "1 file is listed before and counted once" in caplog.text


def test_4_3_one_file_by_two_paths_in_a_split_file(tmp_path, coop_tree, config):
    rows = coop_tree(tmp_path, "dtd", split="")
    path, label, name = rows["train"][0]
    for spelling in (f"./{path}", path.replace("/", "//"), str(tmp_path / "dtd/images" / path), path.upper()):
        split = {**rows, "test": [*rows["test"], [spelling, label, name]]}
        (tmp_path / "split.json").write_text(json.dumps(split))
        with pytest.raises(ValueError, match=r"names .* twice|in two parts, .* first in train and test"):
            DescribableTextures(config(tmp_path, [], [], SPLIT_FILE=str(tmp_path / "split.json")))


def test_files_of_folders_without_links_are_not_asked_for(tmp_path, grow, config, monkeypatch):
    root = grow(tmp_path, "day/cat", "day/dog", "night/cat", "night/dog")
    asked = []
    monkeypatch.setattr(os, "readlink", lambda path, *rest: asked.append(path))
    ordinary = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **rest: (asked.append(path), ordinary(path, **rest))[1])
    data = FolderDomains(config(root, ["day"], ["night"]))
    assert len(data.test) == 10 and not [path for path in asked if str(path).endswith(".jpg")]
