"""A user's own data without domains, and lists of images.

Covers: FolderClasses (parts under their names, without test, without parts, a test alone, class list by file and by
folders, what is not read, trees with domains), Manifest (with and without domains, parts and labels; paths from several
places; each line that cannot be used).
"""

from collections import Counter
from pathlib import Path

import pytest

from dassl_clip.datasets import FolderClasses, FolderDomains, Manifest


def tree(root: Path, *folders: str, size: int = 5) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(size):
            (root / folder / f"{number}.jpg").touch()
    return root


def names(items, root):
    return sorted(str(Path(item.impath).relative_to(root)) for item in items or [])


@pytest.mark.parametrize("parts", [("train", "val", "test"), ("Training", "Validation", "Testing")])
def test_class_folders_in_parts(parts, tmp_path, config):
    root = tree(tmp_path, *(f"{part}/{name}" for part in parts for name in ("cat", "fire_truck")))
    data = FolderClasses(config(root, [], []))
    assert data.classnames == ["cat", "fire_truck"] and data.domains == []
    for part, items in zip(parts, (data.train_x, data.val, data.test)):
        assert len(items) == 10 and all(name.startswith(f"{part}/") for name in names(items, root))


def test_without_test_or_without_parts(tmp_path, config):
    root = tree(tmp_path / "a", "train/cat", "train/dog", "val/cat", "val/dog")
    data = FolderClasses(config(root, [], [], NUM_SHOTS=2))
    assert all(name.startswith("val/") for name in names(data.test, root)) and len(data.test) == 10
    assert len(data.val) == 4 and not {*names(data.val, root)} & {*names(data.train_x, root)}
    root = tree(tmp_path / "b", "cat", "dog")
    data = FolderClasses(config(root, [], []))
    assert Counter(item.classname for item in data.test) == {"cat": 1, "dog": 1}
    assert len({*names(data.train_x, root), *names(data.val, root), *names(data.test, root)}) == 10
    root = tree(tmp_path / "c", "val/cat", "val/dog")
    data = FolderClasses(config(root, [], []))
    assert data.train_is_test and len(data.test) == 10


def test_class_list_and_what_is_not_read(tmp_path, config, caplog):
    root = tree(tmp_path, "train/cat", "train/dog", "test/dog", "extra/dog")
    (root / "classnames.txt").write_text("dog\ncat\n")
    data = FolderClasses(config(root, [], []))
    assert data.classnames == ["dog", "cat"] and {item.label for item in data.test} == {0}
    assert "has folders that are not read: extra" in caplog.text
    (root / "classnames.txt").write_text("dog\n")
    with pytest.raises(ValueError, match="does not name the class folders cat"):
        FolderClasses(config(root, [], []))
    with pytest.raises(FileNotFoundError, match=r"no class folder with images found in .*images itself"):
        FolderClasses(config(root / "train/cat", [], []))


PLAIN = "path,class\n" + "".join(f"{name}/{i}.jpg,{name}\n" for name in ("dog", "cat") for i in range(5))
DAY_AND_NIGHT = "Path,Class,Domain\n" + "".join(
    f"{name}/{i}.jpg,{name},{'day' if i < 3 else 'night'}\n" for name in ("dog", "cat") for i in range(5)
)


def test_manifest_without_domains(tmp_path, config):
    root = tree(tmp_path, "dog", "cat")
    (root / "manifest.csv").write_text(PLAIN)
    data = Manifest(config(root, [], []))
    assert data.classnames == ["cat", "dog"] and data.domains == []
    assert Counter(item.classname for item in data.test) == {"cat": 1, "dog": 1}
    assert len({*names(data.train_x, root), *names(data.val, root), *names(data.test, root)}) == 10
    assert all(Path(item.impath).parent.name == item.classname for item in data.train_x)


def test_manifest_with_domains(tmp_path, config):
    root = tree(tmp_path, "dog", "cat")
    (root / "list.csv").write_text(DAY_AND_NIGHT)
    cfg = config(root, ["Day"], ["night"], MANIFEST="list.csv")
    data = Manifest(cfg)
    assert Manifest.list_domains(cfg) == data.domains == ["day", "night"]
    assert names(data.test, root) == ["cat/3.jpg", "cat/4.jpg", "dog/3.jpg", "dog/4.jpg"]
    assert len(data.train_x) + len(data.val) == 6
    with pytest.raises(ValueError, match=r'Manifest has no domain "dusk"; it has day, night'):
        Manifest(config(root, ["dusk"], ["night"], MANIFEST="list.csv"))


def test_manifest_with_parts_labels_and_domains(tmp_path, config):
    root = tree(tmp_path / "images", "a", "b", size=4)
    lines = ["path,class,label,domain,split"]
    for name, label in (("a", 1), ("b", 0)):
        for number, part in enumerate(("train", "train", "val", "test")):
            domain = "x" if number != 1 else "y"
            lines.append(f"{name}/{number}.jpg,class {name},{label},{domain},{part}")
    path = tmp_path / "lists" / "mine.csv"
    path.parent.mkdir()
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    data = Manifest(config(root, ["x"], ["x"], MANIFEST=str(path)))
    assert data.classnames == ["class b", "class a"]
    assert [names(items, root) for items in (data.train_x, data.val, data.test)] == [
        ["a/0.jpg", "b/0.jpg"],
        ["a/2.jpg", "b/2.jpg"],
        ["a/3.jpg", "b/3.jpg"],
    ]


def test_manifest_that_is_a_test_alone(tmp_path, config):
    root = tree(tmp_path, "a", size=2)
    (root / "manifest.csv").write_text("path,class,split\na/0.jpg,a,test\na/1.jpg,a,test\n")
    data = Manifest(config(root, [], []))
    assert data.train_is_test and len(data.test) == len(data.train_x) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\n", r"has no column path; its first line must name columns of path, class"),
        ("path,class,domian\na/0.jpg,a,x\n", r"the unknown column domian; .*Did you mean .domain."),
        ("path,class\n", r"names no image"),
        ("path,class\na/0.jpg,\n", r"line 2: path and class must not be empty"),
        ("path,class\na/0.jpg,a,b\n", r"line 2: more cells than columns; quote cells that hold commas"),
        ("path,class,split\na/0.jpg,a,tset\n", r'line 2: split is "tset"; it must be train, val, test or empty'),
        ("path,class,split\na/0.jpg,a,test\na/1.jpg,a,\n", r"split is empty in the lines 3 and filled in others"),
        ("path,class\na/0.jpg,a\na/0.jpg,b\n", r"lines 2 and 3 name the same image a/0.jpg"),
        ("path,class,label\na/0.jpg,a,x\n", r'line 2: label is "x"; it must be a whole number'),
        ("path,class,label\na/0.jpg,a,1\na/1.jpg,a,2\n", r'line 3: class "a" has label 2, but 1 before'),
        (
            "path,class,label\na/0.jpg,a,1\na/1.jpg,b,2\n",
            r"of 2 classes must be 0 to 1, each once; they are 1, 2",
        ),
        ("path,class\n" + "a" * 200_000 + ",a\n", r"manifest.csv cannot be read as a csv file \(field larger than"),
        ("path,class,domain\na/0.jpg,a,Day\na/1.jpg,a,day\n", r'the domains "Day" and "day" are spellings of one name'),
    ],
)
def test_manifest_lines_that_cannot_be_used(text, message, tmp_path, config):
    root = tree(tmp_path, "a")
    (root / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Manifest(config(root, [], []))


def test_manifest_files_missing(tmp_path, config):
    root = tree(tmp_path, "a", size=1)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*manifest.csv; set DATASET.MANIFEST or put"):
        Manifest(config(root, [], []))
    (root / "manifest.csv").write_text("path,class\na/0.jpg,a\nb/9.jpg,b\nb/8.jpg,b\n")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images are missing, first: b/9.jpg \(line 3\)"):
        Manifest(config(root, [], []))


def test_trees_of_the_other_shape_and_images_outside(tmp_path, config, caplog):
    domains = tree(tmp_path / "a", "day/cat", "day/dog", "night/cat", "night/dog")
    with pytest.raises(FileNotFoundError, match=r"domains \(day, night\) is read by DATASET\.NAME FolderDomains"):
        FolderClasses(config(domains, [], []))
    with pytest.raises(
        FileNotFoundError, match=r"class/image, without domains, is read by DATASET\.NAME FolderClasses"
    ):
        FolderDomains(config(domains / "day", ["cat"], ["dog"]))
    parts = tree(tmp_path / "b", "train/cat", "test/cat")
    (parts / "loose.jpg").touch()
    FolderClasses(config(parts, [], []))
    assert f"{parts} holds images outside the parts, not read: loose.jpg" in caplog.text
