"""Listings kept between runs.

Covers: an entry that answers without listing (no `os.scandir` of an unchanged folder), and every change that must be
seen, each compared with a listing of the disk: files and folders added, removed, renamed, at any depth; a folder in
another's place with the times of the old one; a link turned elsewhere, a link whose target is gone; a time set back;
rights taken away. Folders that changed just now are not kept; odd names come back as they are; entries that are torn,
of another version, of another root or nonsense are removed with a warning and made again; small sets and
DASSL_CLIP_CACHE=off leave nothing; a folder that cannot be written; folders not asked for stay in the entry; through a
loader, ImageNet's images are the same with and without an entry, and `verify` reads none.
"""

import gzip
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from dassl_clip.datasets import ImageNet
from dassl_clip.datasets.folders import list_folder, scan_folder
from dassl_clip.datasets.listings import LEAST, SETTLED, Listings, kept_listings
from dassl_clip.datasets.verify import verify

CASES = (
    "unchanged", "added", "removed", "renamed", "added deep", "sub-folder", "replaced", "swapped", "retargeted",
    "unlinked", "set back", "refused", "torn", "version", "other root", "nonsense", "no gzip", "narrowed", "grown",
)  # fmt: skip


def make_tree(root: Path) -> Path:
    """Two domains of two classes with three files each; a third domain that is a link, and one with a linked file."""
    for domain in ("a", "b", "spare"):
        for name in ("cat", "dog"):
            (root / domain / name).mkdir(parents=True)
            for number in range(3):
                (root / domain / name / f"{number}.jpg").touch()
    (root / "linked").symlink_to(root / "a")
    (root / "b" / "dog" / "link.jpg").symlink_to(root / "a" / "dog" / "1.jpg")
    (root / "a" / "cat" / "blank ü\u0308 .jpg").touch()
    with open(os.fsencode(root / "a" / "cat") + b"/caf\xe9.png", "wb"):
        pass
    return root


def walk(folder: Path, listings: Listings | None = None) -> dict[str, tuple]:
    """Every folder's names, through `listings` or from the disk."""
    found, waiting = {}, [str(folder)]
    while waiting:
        path = waiting.pop()
        listing = scan_folder(path) if listings is None else listings.get(path, scan_folder)
        found[path] = (listing.folders, listing.files)
        waiting += [os.path.join(path, name) for name in listing.folders]
    return found


def kept(root: Path, cache: Path, least: int = 1) -> Listings:
    return Listings("Some", str(root), cache, least)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A tree and a cache with its entry for each case, all of them settled."""
    home = tmp_path_factory.mktemp("listings")
    for case in CASES:
        make_tree(home / case / "data")
    time.sleep(SETTLED / 1e9 + 0.1)
    for case in CASES:
        listings = kept(home / case / "data", home / case / "cache")
        walk(home / case / "data", listings)
        listings.save()
        assert listings.path.is_file()
    return home


@pytest.fixture
def scanned(monkeypatch):
    """Folders that are listed on the disk."""
    seen, scandir = [], os.scandir

    def note(folder):
        seen.append(str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", note)
    return seen


def test_unchanged_folders_are_not_listed(trees, scanned):
    root = trees / "unchanged/data"
    truth = walk(root)
    scanned.clear()
    listings = kept(root, trees / "unchanged/cache")
    assert walk(root, listings) == truth and len(truth) == 13
    with_links = [str(root), str(root / "b/dog")]
    assert scanned == with_links
    assert walk(root, listings) == truth and scanned == with_links  # a second look within a run asks for nothing
    assert "caf\udce9.png" in truth[str(root / "a/cat")][1] and "blank ü\u0308 .jpg" in truth[str(root / "a/cat")][1]


def change(case: str, root: Path) -> None:
    """What happens to a tree between two runs."""
    if case == "added":
        (root / "a/cat/9.jpg").touch()
    elif case == "removed":
        (root / "a/cat/0.jpg").unlink()
    elif case == "renamed":
        (root / "a/cat/0.jpg").rename(root / "a/cat/zero.jpg")
    elif case == "added deep":
        (root / "b/cat/deep/er").mkdir(parents=True)
        (root / "b/cat/deep/er/1.jpg").touch()
    elif case == "sub-folder":
        shutil.rmtree(root / "b/cat")
        (root / "b/bird").mkdir()
    elif case == "replaced":  # by another folder with the same names but one, and the times of the old one
        times = os.stat(root / "a/cat")
        (root / "a/cat").rename(root / "old")
        shutil.copytree(root / "a/dog", root / "a/cat")
        os.utime(root / "a/cat", ns=(times.st_atime_ns, times.st_mtime_ns))
    elif case == "swapped":
        (root / "a").rename(root / "c")
        (root / "b").rename(root / "a")
        (root / "c").rename(root / "b")
    elif case == "retargeted":
        (root / "spare/cat/only here.jpg").touch()
        (root / "linked").unlink()
        (root / "linked").symlink_to(root / "spare")
    elif case == "set back":
        times = os.stat(root / "a/cat")
        (root / "a/cat/9.jpg").touch()
        os.utime(root / "a/cat", ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "case",
    ["added", "removed", "renamed", "added deep", "sub-folder", "replaced", "swapped", "retargeted", "set back"],
)
def test_changes_are_seen(case, trees):
    root, cache = trees / case / "data", trees / case / "cache"
    before = walk(root)
    change(case, root)
    truth = walk(root)
    assert truth != before
    for _ in range(2):  # the second time from the entry that the first may have written
        listings = kept(root, cache)
        assert walk(root, listings) == truth
        listings.save()


def test_a_link_that_leads_nowhere_is_seen(trees):
    root = trees / "unlinked/data"
    (root / "a/dog/1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b/dog/link\.jpg is a link to a file that does not exist"):
        walk(root, kept(root, trees / "unlinked/cache"))


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
def test_rights_taken_away_are_seen(trees):
    root = trees / "refused/data"
    (root / "a/cat").chmod(0)
    with pytest.raises(PermissionError):
        walk(root, kept(root, trees / "refused/cache"))
    (root / "a/cat").chmod(0o755)


@pytest.mark.parametrize("case", ["torn", "version", "other root", "nonsense", "no gzip"])
def test_entries_that_cannot_be_used(case, trees, caplog):
    root, cache = trees / case / "data", trees / case / "cache"
    path, truth = kept(root, cache).path, walk(root)
    content = path.read_bytes()
    first, second = gzip.decompress(content).decode().splitlines()
    facts = json.loads(first)
    if case == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif case == "version":
        path.write_bytes(gzip.compress(f"{json.dumps({**facts, 'version': 0})}\n{second}\n".encode()))
    elif case == "other root":
        path.write_bytes(gzip.compress(f"{json.dumps({**facts, 'root': '/elsewhere'})}\n{second}\n".encode()))
    elif case == "nonsense":
        rows = {folder: row[2:] for folder, row in json.loads(second).items()}
        path.write_bytes(gzip.compress(f"{first}\n{json.dumps(rows)}\n".encode()))
    else:
        path.write_bytes(b"notes")
    with caplog.at_level(logging.WARNING):
        listings = kept(root, cache)
        assert walk(root, listings) == truth
    assert f"{path} holds no listings and is made again" in caplog.text and not path.exists()
    listings.save()
    caplog.clear()
    assert walk(root, kept(root, cache)) == truth and path.is_file() and not caplog.text
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_folders_that_are_not_asked_for_stay(trees, scanned):
    root, cache = trees / "narrowed/data", trees / "narrowed/cache"
    (root / "spare/cat").rename(root / "spare/cats")
    listings = Listings("Some", str(root), cache, least=0)
    walk(root / "a", listings)
    listings.save()
    scanned.clear()
    listings = kept(root, cache)
    walk(root / "b", listings)
    assert scanned == [str(root / "b/dog")]
    stored = json.loads(gzip.decompress(listings.path.read_bytes()).splitlines()[1])
    assert str(root / "a/dog") in stored and not any("spare/cat" in folder for folder in stored)


def test_few_new_names_leave_an_entry_as_it_is(trees):
    root, cache = trees / "grown/data", trees / "grown/cache"
    before = kept(root, cache).path.read_bytes()
    (root / "a/cat/9.jpg").touch()
    listings = kept(root, cache, least=4)
    truth = walk(root)
    assert walk(root, listings) == truth
    listings.save()
    assert listings.path.read_bytes() == before


def test_folders_of_just_now_are_not_kept(tmp_path):
    root = make_tree(tmp_path / "data")
    listings = kept(root, tmp_path / "cache")
    walk(root, listings)
    listings.save()
    assert not listings.path.exists()


def test_a_folder_that_cannot_be_written(trees, tmp_path, caplog):
    (tmp_path / "cache").touch()
    root = trees / "unchanged/data"
    with caplog.at_level(logging.INFO):
        listings = kept(root, tmp_path / "cache")
        assert walk(root, listings) == walk(root)
        listings.save()
    assert "listings are not kept" in caplog.text and "DASSL_CLIP_CACHE names a folder" in caplog.text


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json.gz"))


def test_through_a_loader(tmp_path, imagenet_tree, config, own_cache, scanned, monkeypatch):
    imagenet_tree(tmp_path, "imagenet/images", {"train": LEAST // 1000 - 1, "val": 1})
    time.sleep(SETTLED / 1e9 + 0.1)

    def load(setting=str(own_cache), **options):
        monkeypatch.setenv("DASSL_CLIP_CACHE", setting)
        scanned.clear()
        data = ImageNet(config(tmp_path, [], [], **options))
        return [[(d.impath, d.label) for d in part or []] for part in (data.train_x, data.val, data.test)], len(scanned)

    plain, cost = load("off", NUM_SHOTS=3)
    assert cost > 2000 and not entries(own_cache)
    first, cost = load(NUM_SHOTS=3)
    assert first == plain and 2000 < cost < 2020 and len(entries(own_cache)) == 1  # each folder once
    assert load(NUM_SHOTS=3) == (plain, 0)
    used = entries(own_cache)[0].stat().st_mtime_ns
    assert load()[1] == 0 and entries(own_cache)[0].stat().st_mtime_ns > used
    (tmp_path / "imagenet/images/val/n01440764/new.jpeg").touch()
    grown, cost = load(NUM_SHOTS=3)
    assert cost == 1 and len(grown[2]) == len(plain[2]) + 1 and grown[:2] == plain[:2]
    shutil.rmtree(tmp_path / "imagenet/images/train/n01443537")
    with pytest.raises(FileNotFoundError, match="missing: n01443537"):
        load(NUM_SHOTS=3)
    scanned.clear()
    verify(ImageNet, config(tmp_path, [], []))
    assert len(scanned) > 1000


def test_small_sets_leave_nothing(tmp_path, draw, own_cache):
    draw(tmp_path / "cat/1.jpg")
    time.sleep(0.01)
    with kept_listings("Some", str(tmp_path)):
        assert list_folder(tmp_path) == (["cat"], [])
        shutil.rmtree(tmp_path / "cat")
        assert list_folder(tmp_path) == (["cat"], [])  # one view of a folder within a loader
    assert list_folder(tmp_path) == ([], []) and not list(own_cache.iterdir())
