"""Class folders of which no file is read do not leave the class list without a word.

Covers: endings that are not read, images one folder deeper, empty folders, in FolderClasses with and without parts and
in FolderDomains, whole domains, folders of notes, some unread files beside images; ON_UNREAD_CLASS skip; loaders of
published data sets; `verify`.
"""

import pytest

from dassl_clip.datasets import PACS, FolderClasses, FolderDomains
from dassl_clip.datasets.verify import UNUSABLE, verify

SHAPES = {"domains": ("day/", "night/"), "parts": ("train/", "test/"), "classes": ("",)}


@pytest.fixture(params=SHAPES)
def shape(request, tmp_path, grow):
    """A loader, its domains and places of the class folders, with the classes cat and dog."""
    places = SHAPES[request.param]
    grow(tmp_path, *(f"{place}{name}" for place in places for name in ("cat", "dog")))
    return (FolderDomains, (["day"], ["night"]), places) if places[0] == "day/" else (FolderClasses, ([], []), places)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("owl/1.avif", r"owl \(1 of its 1 files end in .avif, which is not read\)"),
        ("owl/1.HEIC", r"end in .heic"),
        ("owl/0001", r"end in nothing, which is not read"),
        ("owl/2021/1.jpg", r"owl \(its images lie deeper, the first in 2021/1.jpg\)"),
        ("owl/a/b/1.png", r"the first in a/b/1.png"),
        ("owl", r"owl \(it is empty\)"),
    ],
)
def test_4_5_a_class_that_is_not_read_is_refused(file, reason, shape, tmp_path, draw, config, caplog):
    """The class left the class list with "folders that are no class" (row 4.5)."""
    loader, domains, places = shape
    for place in places:
        if file == "owl":
            (tmp_path / place / file).mkdir()
        else:
            draw(tmp_path / place / file)
    with pytest.raises(FileNotFoundError, match=rf"no image is read from the class folders? .*{reason}.*CLASS skip"):
        loader(config(tmp_path, *domains))
    assert verify(loader, config(tmp_path, [], [])).verdict == UNUSABLE
    data = loader(config(tmp_path, *domains, ON_UNREAD_CLASS="skip"))
    assert data.classnames == ["cat", "dog"] and "which is no class then" in caplog.text
    with pytest.raises(ValueError, match='ON_UNREAD_CLASS is "ignore"; it must be error or skip'):
        loader(config(tmp_path, *domains, ON_UNREAD_CLASS="ignore"))


def test_4_5_a_class_that_is_read_elsewhere(tmp_path, grow, config):
    root = grow(tmp_path, "day/cat", "day/owl", "night/cat")
    (root / "night/owl").mkdir()
    assert FolderDomains(config(root, ["day"], ["night"])).classnames == ["cat", "owl"]  # it warns that night has none
    grow(root, "night/owl", ending="webm")
    with pytest.raises(FileNotFoundError, match=r"night/owl \(5 of its 5 files end in .webm"):
        FolderDomains(config(root, ["day"], ["night"]))


def test_4_5_a_domain_that_is_not_read(tmp_path, grow, config):
    root = grow(tmp_path, "day/cat", "night/cat")
    grow(root, "rain/cat", ending="avif")
    with pytest.raises(FileNotFoundError, match=r"rain/cat \(5 of its 5 files end in .avif"):
        FolderDomains(config(root, ["day"], ["night"]))


def test_4_5_notes_are_no_class(shape, tmp_path, config):
    loader, domains, places = shape
    (tmp_path / places[0] / "docs").mkdir()
    (tmp_path / places[0] / "docs/README.md").touch()
    assert loader(config(tmp_path, *domains)).classnames == ["cat", "dog"]


def test_4_5_unread_files_beside_images_warn(shape, tmp_path, draw, config, caplog):
    loader, domains, places = shape
    draw(tmp_path / places[-1] / "cat/9.avif")
    loader(config(tmp_path, *domains))
    assert "1 files in" in caplog.text and "are not read: cat/9.avif" in caplog.text


def test_4_5_published_data_sets_say_why(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path, "PACS")
    for path in (root / "PACS/photo/dog").iterdir():
        path.rename(path.with_suffix(".avif"))
    with pytest.raises(FileNotFoundError, match=r"no images in .*photo/dog .*10 of its 10 files end in .avif"):
        PACS(config(root, ["photo"], ["sketch"]))
