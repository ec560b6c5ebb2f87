"""What `verify` says of trees as they lie on disks, whole and damaged.

Covers: sound trees of published sizes, counts by domain, part and class, layouts, thirty kinds of damage with the
sentence and the verdict for each, files that cannot be decoded, copies, what is written beside the data (nothing),
splits of one's own (shares, groups of videos, labels from names, folders and .mat files, refused names).
"""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import dassl_clip.datasets as room
from dassl_clip.datasets import PACS, UCF101, VLCS, EuroSAT, FolderDomains, Manifest, OfficeHome
from dassl_clip.datasets.make_split import make_split
from dassl_clip.datasets.spec import load_spec
from dassl_clip.datasets.verify import ERROR, FITS, NOTE, UNUSABLE, WARNING, WARNS, verify
from dassl_clip.engine.images import inspect_image
from dassl_clip.results.data_sets import read_entry

DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]


def texts(report, level):
    return [finding.text for finding in report.findings if finding.level == level]


def whole_pacs(root: Path, layout="PACS") -> Path:
    """PACS with the published number of images in each class, files of one byte."""
    for domain, entry in load_spec("pacs").details.items():
        for name, size in entry["per_class"].items():
            folder = root / layout / domain / name
            folder.mkdir(parents=True)
            for number in range(size):
                (folder / f"pic_{number:04d}.{'png' if domain == 'sketch' else 'jpg'}").write_bytes(b"x")
    (root / layout / "sketch/dog/pic_0000.png").rename(root / layout / "sketch/dog/n02103406_4068-1.png")
    return root


def test_pacs_as_published(tmp_path, config):
    before = sorted((root := whole_pacs(tmp_path)).rglob("*"))
    report = verify(PACS, config(root, [], []))
    assert report.verdict == FITS and not texts(report, WARNING) + texts(report, ERROR)
    assert {count.name: sum(count.images.values()) for count in report.counts} == {
        "art_painting": 2048,
        "cartoon": 2344,
        "photo": 1670,
        "sketch": 3928,
    }
    assert [count.published for count in report.counts] == [2048, 2344, 1670, 3928]
    assert [dict(sorted(count.images.items()))[4] for count in report.counts] == [201, 324, 199, 816]
    assert texts(report, NOTE) == ["sketch/dog/n02103406_4068-1.png is known to be damaged and is always left out"]
    assert sorted(root.rglob("*")) == before
    (root / "PACS/photo/dog/pic_0003.jpg").unlink()
    (root / "PACS/photo/house/more.jpg").write_bytes(b"x")
    report = verify(PACS, config(root, [], []))
    assert report.verdict == WARNS
    assert texts(report, WARNING) == [
        "PACS: images (published number) of classes of photo: dog 188 (189), house 281 (280)"
    ]


def test_parts_are_counted(tmp_path, vlcs_tree, coop_tree, config):
    report = verify(VLCS, config(vlcs_tree(tmp_path, "dassl"), [], []))
    assert [count.parts for count in report.counts] == [{"train": 25, "val": 10, "test": 15}] * 4
    coop_tree(tmp_path, "eurosat")
    report = verify(EuroSAT, config(tmp_path, [], []))
    assert {count.name: sum(count.images.values()) for count in report.counts} == {"train": 40, "val": 20, "test": 30}
    assert [count.published for count in report.counts] == [13500, 5400, 8100]
    assert any("NOT the published split" in text for text in texts(report, WARNING))


def hurt(root: Path, steps: str) -> None:
    """Do to a tree what the steps say: `rm`, `mv` and `cp` as in a shell, `write`, `lists` of domains, `flat`."""
    for step in steps.split("; "):
        kind, *names = step.split(" ", 2)
        first, *rest = (root / name for name in names)
        first.parent.mkdir(parents=True, exist_ok=True)
        if kind == "rm":
            shutil.rmtree(first) if first.is_dir() else first.unlink()
        elif kind == "mv":
            first.rename(root / "moved")
            rest[0].parent.mkdir(parents=True, exist_ok=True)
            (root / "moved").rename(rest[0])
        elif kind == "cp":
            shutil.copytree(first, rest[0]) if first.is_dir() else shutil.copy(first, rest[0])
        elif kind == "write":
            first.write_bytes(names[1].encode("latin-1") if len(names) > 1 else b"")
        elif kind == "link":
            first.symlink_to("/nowhere/zzz.jpg")
        elif kind == "flat":
            for file in first.glob("*/*"):
                file.rename(first / f"{file.parent.name}_{file.name}")
            for folder in {path for path in first.iterdir() if path.is_dir()}:
                folder.rmdir()
        else:
            for domain in DOMAINS[: int(names[0])]:
                files = sorted(path.relative_to(root / "PACS") for path in (root / "PACS" / domain).rglob("*.*g"))
                for part, chosen in (("train", files[1:]), ("crossval", files[:1])):
                    path = root / f"PACS/splits/{domain}_{part}_kfold.txt"
                    path.parent.mkdir(exist_ok=True)
                    path.write_text("".join(f"{name} 1\n" for name in chosen))


PAGE = "\n<!DOCTYPE html><html>Google Drive - Quota exceeded</html>"
LIST = "PACS/splits/photo_train_kfold.txt"
DAMAGE = [
    ("rm PACS/sketch", UNUSABLE, "PACS has no folder for sketch. Domains found: art_painting, cartoon, photo"),
    ("mv PACS pAcS; mv pAcS/photo pAcS/PHOTO", WARNS, "number of images (published number) differs in photo 21 (1670)"),
    ("mv PACS a/b/PACS", UNUSABLE, "a/b/PACS: set DATASET.ROOT to"),
    (
        "mv PACS/photo PACS/photo/photo",
        UNUSABLE,
        "photo/photo is nested once too often: move what it holds one level up",
    ),
    ("rm PACS/cartoon/horse", UNUSABLE, "found 6 class folders in"),
    ("rm PACS/cartoon/horse; write PACS/cartoon/horse/notes.txt", UNUSABLE, "no images in"),
    ("mv PACS/cartoon/horse PACS/cartoon/horse/horse", UNUSABLE, "horse/horse is nested once too often"),
    ("mv PACS/cartoon/horse PACS/cartoon/hrose", UNUSABLE, "missing: horse"),
    ("mv PACS/cartoon/horse PACS/cartoon/hrose", UNUSABLE, "holds folders that are no class and are not read: hrose"),
    ("cp PACS/photo/dog PACS/photo/zebra", WARNS, "holds folders that are no class and are not read: zebra"),
    ("cp PACS/photo/dog PACS/photo/DOG", UNUSABLE, "has two folders for the class dog: DOG, dog"),
    (
        "cp PACS/art_painting PACS/ArtPainting",
        UNUSABLE,
        "2 folders for the domain art_painting: ArtPainting, art_painting",
    ),
    (
        "cp PACS/photo/dog/pic_000.jpg PACS/photo/loose.jpg",
        WARNS,
        "images outside the class folders, not read: loose.jpg",
    ),
    ("cp PACS/photo/dog PACS/photo/house/dog", WARNS, "house: its sub-folders are not read: dog"),
    ("write PACS/photo/dog/pic_002.jpg", UNUSABLE, "PACS/photo/dog/pic_002.jpg is empty (0 bytes)"),
    ("link PACS/photo/dog/zzz.jpg", UNUSABLE, "PACS/photo/dog/zzz.jpg is a link to a file that does not exist"),
    (
        f"rm PACS; write PACS.zip {PAGE}",
        UNUSABLE,
        "PACS.zip is a web page, not an archive: the download failed; get it again",
    ),
    ("rm PACS; write pacs.zip PK\x03\x04rest", UNUSABLE, "pacs.zip is an archive: unpack it first"),
    ("rm PACS; write pacs.tar.gz", UNUSABLE, "pacs.tar.gz is empty (0 bytes): get it again"),
    ("rm PACS", UNUSABLE, "Looked for the folders art_painting, cartoon, photo, sketch in data/ itself, pacs/"),
    ("mv PACS imagenet", UNUSABLE, "holds imagenet. Folders of that kind lie in"),
    ("rm PACS; write a", UNUSABLE, "/data holds a. Nothing is downloaded; see docs/datasets.md"),
    ("rm .", UNUSABLE, "is not a folder; the part of it that exists is"),
    ("rm .; write .", UNUSABLE, "is a file: give the folder that holds PACS"),
    ("flat PACS/photo", UNUSABLE, "21 images lie in it directly, outside any class folder"),
    ("lists 3", UNUSABLE, "has no split list for sketch (train), sketch (val); it has"),
    ("lists 4; rm PACS/photo/dog/pic_002.jpg", UNUSABLE, "1 of 20 files listed in"),
    (f"lists 4; write {LIST} photo/dog/pic_003.jpg\n", UNUSABLE, 'line 1: expected "domain/class/file label"'),
    (f"lists 4; write {LIST} \xff\xfe\x00photo", UNUSABLE, "photo_train_kfold.txt is not a text in UTF-8"),
]


@pytest.mark.parametrize(("steps", "verdict", "text"), DAMAGE)
def test_damaged_trees(steps, verdict, text, tmp_path, pacs_tree, config):
    """What makes a tree unusable for `verify` is refused by a run with the same sentence."""
    root = tmp_path / "data"
    hurt(pacs_tree(root, "PACS", size=3), steps)
    report = verify(PACS, config(root, [], []))
    refused = verdict == UNUSABLE and "not read" not in text
    said = texts(report, ERROR if refused else WARNING)
    assert any(text in line for line in said), said
    assert report.verdict == verdict
    if refused and "pic_002.jpg is empty" not in text:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            PACS(config(root, ["photo", "cartoon"], ["sketch", "art_painting"]))
        assert text in str(caught.value)


def test_an_archive_as_root_and_a_wrong_protocol(tmp_path, pacs_tree, config):
    (tmp_path / "PACS.zip").touch()
    said = texts(verify(PACS, config(tmp_path / "PACS.zip", [], [])), ERROR)
    assert any("PACS.zip is an archive: unpack it (unzip " in text for text in said)
    report = verify(PACS, config(pacs_tree(tmp_path, "PACS", size=1), [], [], PROTOCOL="holdot"))
    assert any("Did you mean 'holdout'?" in text for text in texts(report, ERROR)) and report.verdict == UNUSABLE


def test_the_other_domains_are_counted_beside_a_broken_one(tmp_path, pacs_tree, config):
    hurt(pacs_tree(tmp_path, "PACS", size=3), "rm PACS/cartoon/horse")
    report = verify(PACS, config(tmp_path, [], []))
    assert [count.name for count in report.counts] == ["art_painting", "photo", "sketch"]
    assert report.unread == ["cartoon"]


def test_another_data_set(tmp_path, office_home_tree, config):
    office_home_tree(tmp_path, "OfficeHome", ["Art", "Clipart", "Product", "Real World"], size=1)
    report = verify(PACS, config(tmp_path, [], []))
    assert report.verdict == UNUSABLE and any("looks like OfficeHome" in text for text in texts(report, ERROR))
    assert verify(OfficeHome, config(tmp_path, [], [])).verdict == WARNS


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
def test_permission_denied(tmp_path, pacs_tree, config):
    pacs_tree(tmp_path, "PACS", size=1)
    (tmp_path / "PACS/photo/dog").chmod(0)
    report = verify(PACS, config(tmp_path, [], []))
    (tmp_path / "PACS/photo/dog").chmod(0o755)
    assert any("PACS/photo/dog: Permission denied" in text for text in texts(report, ERROR))


def test_folders_that_refuse_to_be_read(tmp_path, pacs_tree, config, monkeypatch):
    pacs_tree(tmp_path, "PACS", size=1)
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("photo/dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    report = verify(PACS, config(tmp_path, [], []))
    assert texts(report, ERROR) == [f"cannot read {tmp_path}/PACS/photo/dog: Permission denied"]


def test_names_that_are_not_ascii_and_blanks(tmp_path, draw, config):
    for domain in ("früh am Tag", "夜"):
        for name in ("chat noir", "éléphant"):
            draw(tmp_path / domain / name / "ein bild (1).jpg")
    report = verify(FolderDomains, config(tmp_path, [], []))
    assert report.verdict == FITS and [count.name for count in report.counts] == ["früh am Tag", "夜"]
    assert report.classes == ("chat noir", "éléphant")


def test_images_in_folders_of_other_classes(tmp_path, draw, config):
    rows = [(draw(tmp_path / name / "1.jpg"), name) for name in ("cat", "dog")]
    lines = "".join(f"{path.relative_to(tmp_path)},{'dog' if name == 'cat' else 'cat'}\n" for path, name in rows)
    (tmp_path / "manifest.csv").write_text(f"path,class\n{lines}")
    report = verify(Manifest, config(tmp_path, [], []))
    assert any("2 images lie in a folder that is called like another class" in text for text in texts(report, WARNING))


def test_decoding(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS", size=2)
    assert verify(PACS, config(root, [], []), inspect=inspect_image, jobs=2).verdict == WARNS
    photo = root / "PACS/photo"
    whole = (photo / "dog/pic_000.jpg").read_bytes()
    (photo / "dog/pic_000.jpg").write_bytes(whole[: len(whole) // 2])
    (photo / "dog/pic_001.jpg").write_bytes(b"<html>not found</html>")
    (photo / "horse/pic_000.jpg").write_bytes(b"nonsense")
    assert not texts(verify(PACS, config(root, [], [])), ERROR)
    said = texts(verify(PACS, config(root, [], []), inspect=inspect_image, jobs=2), ERROR)
    assert len(said) == 3
    assert any(text.startswith(f"{photo}/dog/pic_000.jpg cannot be decoded: ") for text in said)
    assert f"{photo}/dog/pic_001.jpg is a web page, not an image: the download failed" in said
    assert any(text.startswith(f"{photo}/horse/pic_000.jpg cannot be decoded: ") for text in said)


def test_copies(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS", size=2)
    for number, path in enumerate(sorted(root.rglob("*.*g"))):
        path.write_bytes(f"{number:04d}".encode())
    assert "no file is a copy of another" in texts(verify(PACS, config(root, [], []), duplicates=True), NOTE)
    shutil.copy(root / "PACS/photo/dog/pic_000.jpg", root / "PACS/cartoon/horse/pic_000.jpg")
    said = texts(verify(PACS, config(root, [], []), duplicates=True), WARNING)
    assert any(
        "1 files are copies of others, in 1 groups, 1 of which have more than one class" in text for text in said
    )


@pytest.mark.parametrize("file", ["caltech101", "oxford_pets", "food101", "sun397", "dtd", "eurosat", "ucf101"])
def test_a_split_of_ones_own(file, tmp_path, coop_tree, config, own_cache):
    rows = coop_tree(tmp_path, file, split="", sizes=(5, 2, 3))
    loader = getattr(room, read_entry(file)["name"])
    before = sorted(tmp_path.rglob("*"))
    path = make_split(loader, config(tmp_path, [], []), seed=1)
    assert sorted(tmp_path.rglob("*")) == before and path.is_relative_to(own_cache)
    made = json.loads(path.read_text())
    assert sorted(row for part in made.values() for row in part) == sorted(
        row for part in rows.values() for row in part
    )
    for part, size in (("train", 5), ("val", 2), ("test", 3)):
        assert set(Counter(label for _, label, _ in made[part]).values()) == {size}
    assert json.loads(make_split(loader, config(tmp_path, [], []), 2, str(tmp_path / "b.json")).read_text()) != made
    data = loader(config(tmp_path, [], [], SPLIT_FILE=str(path)))
    assert len(data.train_x) == 5 * data.num_classes and "NOT the published split" in data.protocol


def test_frames_of_one_group_stay_together(tmp_path, config):
    for name in load_spec("ucf101").classes:
        folder = tmp_path / "ucf101/UCF-101-midframes" / name
        folder.mkdir(parents=True)
        for group in range(6):
            for clip in range(3):
                (folder / f"v_{name.replace('_', '')}_g{group:02d}_c{clip:02d}.jpg").touch()
    made = json.loads(make_split(UCF101, config(tmp_path, [], []), seed=3).read_text())
    parts = {}
    for part, rows in made.items():
        for path, label, _ in rows:
            parts.setdefault((label, path.split("_g")[1][:2]), set()).add(part)
    assert all(len(found) == 1 for found in parts.values()) and len(parts) == 101 * 6


def test_flowers_and_cars_are_labelled_by_their_mat_files(tmp_path, config):
    from scipy.io import savemat

    home = tmp_path / "oxford_flowers"
    (home / "jpg").mkdir(parents=True)
    labels = [label for label in range(1, 103) for _ in range(2)]
    for number in range(1, len(labels) + 1):
        (home / f"jpg/image_{number:05d}.jpg").touch()
    savemat(home / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    made = json.loads(make_split(room.OxfordFlowers, config(tmp_path, [], []), seed=1).read_text())
    numbers = {int(path[6:11]): label for rows in made.values() for path, label, _ in rows}
    assert numbers == {number: label - 1 for number, label in enumerate(labels, start=1)}

    home = tmp_path / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    (home / "cars_train").mkdir()
    kind = [("fname", object), ("class", object)]
    rows = [(f"{number:05d}.jpg", (number - 1) % 196 + 1) for number in range(1, 393)]
    savemat(home / "devkit/cars_train_annos.mat", {"annotations": np.array([rows_of(row) for row in rows], dtype=kind)})
    made = json.loads(make_split(room.StanfordCars, config(tmp_path, [], []), seed=1).read_text())
    found = {path: label for part in made.values() for path, label, _ in part}
    assert found == {f"cars_train/{name}": label - 1 for name, label in rows}


def rows_of(row):
    return (row[0], float(row[1]))


@pytest.mark.parametrize(
    ("loader", "target", "message"),
    [
        (EuroSAT, "split_zhou_EuroSAT.json", r"bears the name of the published split; choose another name"),
        (room.FGVCAircraft, "", r"FGVCAircraft has no split file, so none can be made"),
        (PACS, "", r"PACS has no split file, so none can be made"),
    ],
)
def test_splits_that_are_not_made(loader, target, message, tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat", split="")
    with pytest.raises(ValueError, match=message):
        make_split(loader, config(tmp_path, [], []), 1, str(tmp_path / target) if target else "")
    (tmp_path / "eurosat/2750/River").rename(tmp_path / "eurosat/2750/Rivers")
    with pytest.raises(FileNotFoundError, match=r"EuroSAT: no images of River"):
        make_split(EuroSAT, config(tmp_path, [], []), 1)
