"""Properties over random trees and lists (hypothesis): all is accounted for, or an error names a path.

Covers: FolderDomains and FolderClasses over free trees (names with blanks, in NFC and NFD, of one key, hidden, called
like parts of a split; empty folders, other files, links, also to nothing or to a folder above) and over sound trees
with damage; PACS, VLCS and OfficeHome over sound trees with damage and in wrappers; PACS and DomainNet with damaged
lists; Manifest and split files with damaged text. A tree loads, and then every image below the folders of the domains
is trained on, validated on, tested, or named in a message together with its folder; or the loader refuses with a
ValueError or FileNotFoundError that names a path. No image is in two parts, labels are those of the class list.

`DASSL_CLIP_EXAMPLES=5000` draws so many new examples of each property in place of the usual ones.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import example as given_also
from hypothesis import strategies as st

from dassl_clip.datasets import PACS, VLCS, DomainNet, EuroSAT, FolderClasses, FolderDomains, Manifest, OfficeHome
from dassl_clip.datasets.spec import load_spec
from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.image_formats import IGNORED_FOLDERS, is_image

MORE = int(os.environ.get("DASSL_CLIP_EXAMPLES", "0"))
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of small folders, which disks are slow at
PREFIX = "random-tree-"


def examples(number: int) -> settings:
    """The same examples in every run, unless more are asked for."""
    return settings(
        max_examples=MORE or number,
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


NFC, NFD = (unicodedata.normalize(form, "éléphant") for form in ("NFC", "NFD"))
FOLDERS = st.sampled_from([
    "cat", "Cat", "dog", "fire truck", "fire_truck", "Fire-Truck", NFC, NFD, "ß", "SS", "日本", "day", "night", "train",
    "val", "test", "images", "kfold", "extra", "x.jpg", "000_cat", ".hidden", "__MACOSX", "_", " lead", "trail ", "a,b",
])  # fmt: skip
IMAGES = st.sampled_from([
    "1.jpg", "2.JPG", "3.png", "b c.jpeg", f"{NFC}.webp", f"{NFD}.webp", "x.gif", ".hidden.jpg", "a\nb.jpg", "q'\".bmp",
    "latin \udce9.png", "back\\slash.tif", "-1.ppm",
])  # fmt: skip
OTHERS = st.sampled_from(["notes.txt", "Thumbs.db", "archive.zip", "noending", "1.jpg.part"])
LINKS = st.sampled_from(["file", "folder", "nothing", "above", "other"])

FILES = st.one_of(
    st.tuples(IMAGES, st.just("image")),
    st.tuples(OTHERS, st.just("other")),
    st.tuples(IMAGES, LINKS.map(lambda kind: f"link to {kind}")),
)


def folders_of(inside: st.SearchStrategy) -> st.SearchStrategy:
    """Folders with up to four entries each, files among them."""
    return st.tuples(st.dictionaries(FOLDERS, inside, max_size=4), st.lists(FILES, max_size=2))


LEAF = st.tuples(st.just({}), st.lists(FILES, max_size=4))
TREES = folders_of(folders_of(st.one_of(LEAF, LEAF, LEAF, folders_of(LEAF))))


def make_file(path: Path, kind: str) -> None:
    """A file, or a link to a file, to a folder with an image, to nothing, to the folder above, or to another file."""
    if os.path.lexists(path):
        return
    aside = next(folder for folder in path.parents if folder.name.startswith(PREFIX)) / "aside"
    if kind in ("image", "other"):
        path.touch()
    else:
        (aside / "folder").mkdir(parents=True, exist_ok=True)
        for name in ("file.jpg", "folder/1.jpg", "notes.txt"):
            (aside / name).touch()
        targets = {"file": aside / "file.jpg", "folder": aside / "folder", "nothing": aside / "none", "above": ".."}
        path.symlink_to(targets.get(kind.removeprefix("link to "), aside / "notes.txt"))


def build(place: Path, tree: tuple[dict, list]) -> None:
    """Make a tree that a strategy has drawn."""
    place.mkdir(parents=True, exist_ok=True)
    folders, files = tree
    for name, inside in folders.items():
        build(place / name, inside)
    for name, kind in files:
        make_file(place / name, kind)


def images_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every image that is not hidden, links followed but for those that lead to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith(".") or name in IGNORED_FOLDERS:
            continue
        if path.is_dir():
            yield from images_below(path, (*above, real))
        elif path.is_file() and is_image(name):
            yield path


@contextlib.contextmanager
def example() -> Iterator[tuple[Path, list[str]]]:
    """A folder for a tree, and the messages that loaders write meanwhile."""
    told: list[str] = []
    room, handler = logging.getLogger("dassl_clip.datasets"), logging.Handler(logging.INFO)
    handler.emit = lambda record: told.append(record.getMessage())
    level = room.level
    room.setLevel(logging.INFO)
    room.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix=PREFIX) as folder:
            yield Path(folder) / "root", told
    finally:
        room.removeHandler(handler)
        room.setLevel(level)


def load(loader, cfg, root: Path):
    """The data set, or None if it refuses with a sentence that names a path below the root."""
    try:
        data = loader(cfg)
    except (ValueError, FileNotFoundError) as error:
        assert not isinstance(error, UnicodeError), error
        assert str(root) in str(error), error
        assert len(str(error)) > 20 and type(error) in (UserError, MissingFileError)
        return None
    lists = [[item.impath for item in part or ()] for part in (data.train_x, data.val, data.test)]
    used = [path for part in lists for path in part]
    if not data.train_overlaps_test:
        assert len(used) == len(set(used))
    for item in [*data.train_x, *(data.val or ()), *data.test]:
        assert data.classnames[item.label] == item.classname and os.path.isfile(item.impath)
    return data


def lost(data, told: list[str], *places: Path) -> list[Path]:
    """Images below some folders that are neither used nor named in a message, with the folder they lie in.

    A message names an image by its own path, or by a folder above it and the next step from there on.
    """
    used = {item.impath for part in (data.train_x, data.val, data.test) for item in part or ()}

    def named(image: Path) -> bool:
        return any(
            str(image) in line
            or any(str(folder) in line and (step in line or re.search(r"and \d+ more", line)) for folder, step in steps)
            for steps in [[(folder, image.parts[len(folder.parts)]) for folder in image.parents]]
            for line in told
            if " not read" in line or " not used" in line or "two folders" in line
        )

    return [image for place in places for image in images_below(place) if str(image) not in used and not named(image)]


@examples(40)
@given(TREES)
def test_free_trees(config, tree):
    with example() as (root, told):
        build(root, tree)
        check_folders(config, root, told)


def check_folders(config, root: Path, told: list[str]) -> None:
    """Both loaders of one's own folders, with all domains in use."""
    data = load(FolderClasses, config(root, [], []), root)
    assert data is None or lost(data, told, root) == []
    told.clear()
    try:
        domains = FolderDomains.list_domains(config(root, [], []))
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error)
        return
    sources = domains[:-1] or domains
    data = load(FolderDomains, config(root, sources, domains[-1:]), root)
    assert data is None or lost(data, told, root) == []


KINDS = ["lose file", "lose folder", "empty", "respell", "misname", "deeper", "loose", "below", "junk", "link", "copy"]
DAMAGE = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6), FOLDERS, FILES), max_size=3)


def damage(root: Path, hurts: list) -> None:
    """Do some harm to a tree, one step after another."""
    for kind, number, name, (file, what) in hurts:
        folders = sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if not folders or not files:
            return
        folder = folders[number % len(folders)]
        if kind == "lose file":
            files[number % len(files)].unlink()
        elif kind == "lose folder":
            shutil.rmtree(folder)
        elif kind == "empty":
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif kind in ("respell", "misname"):
            spellings = [folder.name.upper(), folder.name.replace("_", " "), folder.name.title(), folder.name.lower()]
            new = folder.with_name(spellings[number % 4] if kind == "respell" else name)
            if not os.path.lexists(new):
                folder.rename(new)
        elif kind == "deeper":
            folder.rename(root / ".moved")
            folder.mkdir()
            (root / ".moved").rename(folder / folder.name)
        elif kind == "copy":
            new = folder.with_name(folder.name.swapcase())
            if not os.path.lexists(new):
                shutil.copytree(folder, new, symlinks=True)
        elif kind == "link":
            aside = root.parent / "aside" / "linked"
            if not aside.exists():
                shutil.copytree(folder, aside, symlinks=True)
                shutil.rmtree(folder)
                folder.symlink_to(aside)
        else:
            place = folder / name if kind == "below" else folder
            if place.is_dir() or not os.path.lexists(place):
                place.mkdir(exist_ok=True)
                make_file(place / file, "other" if kind == "junk" else what)


@examples(30)
@given(st.sampled_from(["domains", "parts", "classes"]), st.integers(1, 6), st.integers(1, 10), DAMAGE)
def test_damaged_folders(config, shape, size, classes, hurts):
    names = ["cat", "dog", "fire_truck", NFC, "owl", "a b", "Zebra", "x1", "x2", "x3"][:classes]
    tops = {"domains": ["day", "night", "fog"], "parts": ["train", "val", "test"], "classes": [""]}[shape]
    with example() as (root, told):
        for top in tops:
            for name in names:
                (root / top / name).mkdir(parents=True)
                for number in range(size):
                    (root / top / name / f"{number}.jpg").touch()
        damage(root, hurts)
        check_folders(config, root, told)
        if not hurts and size > 1:
            sources, targets = (tops[:2], tops[2:]) if shape == "domains" else ([], [])
            whole = (FolderDomains if shape == "domains" else FolderClasses)(config(root, sources, targets))
            assert whole.num_classes == classes and lost(whole, [], root) == []


NAMED = {
    "PACS": (PACS, "pacs", ["art_painting", "cartoon", "photo"], ""),
    "VLCS by name": (VLCS, "vlcs", ["Caltech101", "LabelMe", "SUN09"], ""),
    "VLCS by part": (VLCS, "vlcs", ["CALTECH", "LABELME", "SUN"], "train/crossval/test"),
    "OfficeHome": (OfficeHome, "office_home", ["Art", "Real World"], ""),
}


def domain_places(data, domains: list[str]) -> list[Path]:
    """The folders of the domains in the tree that a loader has read."""
    used = {Path(item.impath) for part in (data.train_x, data.val, data.test) for item in part or ()}
    keys = {name_key(name) for name in domains}
    return sorted({parent for path in used for parent in path.parents if name_key(parent.name) in keys})


@examples(25)
@given_also(name="VLCS by part", wrapper="", size=1, hurts=[("copy", 1, "cat", ("1.jpg", "image"))])
@given(st.sampled_from([*NAMED]), st.sampled_from(["", "images", "kfold", "own"]), st.integers(1, 3), DAMAGE)
def test_named_sets(config, name, wrapper, size, hurts):
    loader, file, domains, parts = NAMED[name]
    spec = load_spec(file)
    folders = [str(label) for label in range(5)] if parts else spec.folder_names
    with example() as (root, told):
        home = root / {"own": spec.folders[0]}.get(wrapper, wrapper)
        for domain in domains:
            for part in parts.split("/"):
                for folder in folders:
                    (home / domain / part / folder).mkdir(parents=True)
                    for number in range(size):
                        (home / domain / part / folder / f"{part}_{number}.jpg").touch()
        damage(home, hurts)
        sources, targets = (domains, domains) if parts else (domains[:-1], domains[-1:])
        protocol = "all-images" if parts else "dassl"
        data = load(loader, config(root, sources, targets, PROTOCOL=protocol), root)
        if data is None:
            assert hurts
            return
        assert data.classnames == list(spec.classes)
        spellings = [spelling for names in spec.domains.values() for spelling in names] + [*spec.domains]
        assert lost(data, told, *domain_places(data, spellings)) == []
        if not hurts:
            assert lost(data, [], home) == []


LETTERS = st.sampled_from([*'x,"/[7é\\ \t\0\n\ufeff', "", "-1", "\r\n", "{}"])
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), LETTERS), max_size=3)


def edit(text: str, edits: list) -> str:
    """Replace a few letters of a text."""
    for place, length, new in edits:
        place %= len(text) + 1
        text = text[:place] + new + text[place + length :]
    return text


@examples(25)
@given(st.sampled_from(["PACS"] * 11 + ["DomainNet"]), st.booleans(), EDITS, DAMAGE)
def test_damaged_lists(config, name, windows, edits, hurts):
    loader, domains, endings = {
        "PACS": (PACS, ["photo", "sketch"], ("train_kfold", "crossval_kfold")),
        "DomainNet": (DomainNet, ["clipart", "painting"], ("train", "test")),
    }[name]
    classes = load_spec(name.lower()).folder_names
    with example() as (root, told):
        (root / "splits").mkdir(parents=True)
        for domain in domains:
            for place, ending in enumerate(endings):
                lines = []
                for label, folder in enumerate(classes):
                    (root / domain / folder).mkdir(parents=True, exist_ok=True)
                    (root / domain / folder / f"{place}.jpg").touch()
                    lines.append(f"{domain}/{folder}/{place}.jpg {label}")
                text = ("\r\n" if windows else "\n").join(lines)
                if (domain, place) == (domains[0], 0):
                    text = edit(text, edits)
                (root / "splits" / f"{domain}_{ending}.txt").write_bytes(text.encode())
        damage(root, hurts)
        data = load(loader, config(root, domains[:1], domains[1:]), root)
        assert data is not None or edits or hurts
        if data is not None:
            told = [line for line in told if "which this run does not use" not in line]
            tested = domains[1:] if name == "PACS" else []  # DomainNet tests the test list alone
            places = domain_places(data, domains)
            assert lost(data, told, *[place for place in places if place.name in (domains[0], *tested)]) == []


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory, coop_tree):
    """EuroSAT with few images, and the text of its split file and of a manifest of the same."""
    root = tmp_path_factory.mktemp("eurosat")
    rows = coop_tree(root, "eurosat", sizes=(2, 1, 1))
    lines = ["path,class,split"] + [f"2750/{path},{name},{part}" for part in rows for path, _, name in rows[part]]
    return root / "eurosat", json.dumps(rows), "\n".join(lines)


@examples(25)
@given(st.booleans(), EDITS)
def test_damaged_texts(config, eurosat, manifest, edits):
    root, split, lines = eurosat
    with example() as (place, _):
        place.mkdir()
        path = place / "list"
        path.write_bytes(edit(lines if manifest else split, edits).encode())
        options = {"MANIFEST" if manifest else "SPLIT_FILE": str(path)}
        try:
            data = (Manifest if manifest else EuroSAT)(config(root, [], [], **options))
        except (ValueError, FileNotFoundError) as error:
            assert edits and str(path) in str(error) and type(error) in (UserError, MissingFileError), error
            return
        assert {*map(str, (root / "2750").rglob("*.jpg"))} >= {item.impath for item in data.test}
        if not edits:
            assert (len(data.train_x), len(data.test), data.num_classes) == (20, 10, 10)


@examples(25)
@given(st.lists(st.tuples(FOLDERS, IMAGES), min_size=1, max_size=6, unique=True), st.booleans())
def test_manifests_of_odd_names(config, rows, quoted):
    rows = [(folder, name) for folder, name in rows if "\udce9" not in name and "\\" not in name]
    rows = [row for row in rows if not row[0].startswith(" ") and not row[0].endswith(" ")]
    assume(rows)
    with example() as (root, _):
        lines = ["path,class"]
        for folder, name in rows:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()
            cells = [f"{folder}/{name}", folder]
            if quoted or any(letter in cell for cell in cells for letter in '",\n'):
                cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
            lines.append(",".join(cells))
        (root / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
        data = load(Manifest, config(root, [], []), root)
        if data is not None:
            used = {item.impath for part in (data.train_x, data.val, data.test) for item in part or ()}
            assert all(any(os.path.samefile(path, root / folder / name) for path in used) for folder, name in rows)
