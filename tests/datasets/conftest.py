"""Small trees of the data sets, in the layouts they are found in, and configs to load them."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl_clip.datasets import add_config

LISTS = Path(__file__).parents[2] / "datasets" / "lists"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(folder))
    return folder


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(stream, kind)
    return stream.getvalue()


PICTURES = {".png": encoded("PNG"), ".bmp": encoded("BMP")}
JPEG = encoded("JPEG")


def draw_image(path: Path) -> Path:
    """Write a picture of 8x8 pixels, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICTURES.get(path.suffix.lower(), JPEG))
    return path


@pytest.fixture(scope="session")
def draw():
    return draw_image


@pytest.fixture(scope="session")
def grow():
    """Pictures in folders: grow(root, "day/cat", "night/cat", size=5, ending="jpg") gives the root."""

    def make(root: Path, *folders: str, size: int = 5, ending: str = "jpg") -> Path:
        for folder in folders:
            for number in range(size):
                draw_image(root / folder / f"{number}.{ending}")
        return root

    return make


@pytest.fixture(scope="session")
def config():
    """Config for a loader: config(root, sources, targets, SEED=..., TRAINER=..., NUM_SHOTS=...)."""

    def make(root, sources, targets, **options):
        cfg = get_cfg_default()
        add_config(cfg)
        cfg.SEED, cfg.TRAINER.NAME = options.pop("SEED", 1), options.pop("TRAINER", "")
        cfg.DATASET.ROOT = str(root)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = tuple(sources), tuple(targets)
        for key, value in options.items():
            cfg.DATASET[key] = value
        cfg.freeze()
        return cfg

    return make


def published(name: str) -> dict:
    return json.loads((LISTS / f"{name}.json").read_text(encoding="utf-8"))


PACS_CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]


@pytest.fixture(scope="session")
def pacs_tree():
    """PACS with `size` images per class: published lists for the layouts with `splits`, `txt_lists` or `image_list`."""

    def make(root: Path, layout: str = "pacs/images", size: int = 10) -> Path:
        home = {"lists/absolute": "PACS/kfold", "lists/image_list": "PACS"}.get(layout, layout)
        for domain in ("art_painting", "cartoon", "photo", "sketch"):
            ending = "png" if domain == "sketch" else "jpg"
            files = [
                draw_image(root / home / domain / name / f"pic_{number:03d}.{ending}")
                for name in PACS_CLASSES
                for number in range(size)
            ]
            if layout in ("pacs/images", "PACS/images"):
                write_pacs_lists(root / home / ".." / "splits", domain, files, 1, kfold=True)
            elif layout == "lists/absolute":
                write_pacs_lists(
                    root / "PACS" / "txt_lists", domain, files, 0, kfold=True, prefix="/home/me/PACS/kfold/"
                )
            elif layout == "lists/image_list":
                write_pacs_lists(root / "PACS" / "image_list", domain, files, 0, kfold=False)
        return root

    return make


def write_pacs_lists(folder: Path, domain: str, files: list[Path], base: int, kfold: bool, prefix: str = "") -> None:
    """Lists with the last image of each class in crossval; the order of the lines is not that of the folders."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"train": [], "crossval": [], "test": []}
    last = max(int(re.findall(r"\d+", file.stem)[-1]) for file in files)
    for file in reversed(files):
        label = PACS_CLASSES.index(file.parent.name) + base
        held = int(re.findall(r"\d+", file.stem)[-1]) == last
        for part in ("crossval" if held else "train", "test"):
            lines[part].append(f"{prefix}{domain}/{file.parent.name}/{file.name} {label}")
    for part, text in lines.items():
        name = f"{domain}_{part}_kfold" if kfold else f"{domain}_{'val' if part == 'crossval' else part}"
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")


@pytest.fixture(scope="session")
def vlcs_tree():
    """VLCS in Dassl's release (numbers as class folders) or in DomainBed's (names)."""

    def make(root: Path, release: str, sizes=(("train", 5), ("crossval", 2), ("test", 3), ("full", 7))) -> Path:
        classes = ["bird", "car", "chair", "dog", "person"]
        if release == "dassl":
            for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
                for part, size in sizes:
                    for label in range(5):
                        for number in range(size):
                            draw_image(root / "VLCS" / domain / part / str(label) / f"{part}_imgs_{number}.jpg")
        else:
            for domain in ("Caltech101", "LabelMe", "SUN09", "VOC2007"):
                for name in classes:
                    for number in range(10):
                        draw_image(root / "VLCS" / domain / name / f"{number:032x}.jpg")
        return root

    return make


@pytest.fixture(scope="session")
def office_home_tree():
    """OfficeHome: domain folders as given, and `parts` for the layout of OfficeHomeDG."""

    def make(root: Path, home: str, domains, parts=("",), prefix: bool = False, size: int = 2) -> Path:
        names = sorted(published("office_home")["class_spellings"])
        for domain in domains:
            for part in parts:
                for label, name in enumerate(names):
                    folder = root / home / domain / part / (f"{label:03d}_{name}" if prefix else name)
                    for number in range(size):
                        draw_image(folder / f"{part}{number:05d}.jpg")
        return root

    return make


@pytest.fixture(scope="session")
def domainnet_tree():
    """DomainNet with one image a class in the train list and one in the test list, named by label + 1."""

    def make(root: Path, home: str, domains, lists: str = "", size: int = 2) -> Path:
        names = sorted(published("domainnet")["classes"], key=lambda name: re.sub("[^a-z]", "", name.lower()))
        for domain in domains:
            lines = {"train": [], "test": []}
            for number, name in enumerate(names, start=1):
                for image in range(size):
                    file = draw_image(root / home / domain / name / f"{domain}_{number:03d}_{image:06d}.jpg")
                    lines["test" if image == size - 1 else "train"].append(f"{domain}/{name}/{file.name} {number - 1}")
            for part, text in lines.items():
                if lists:
                    folder = root / home / lists
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{domain}_{part}.txt").write_text("\n".join(text) + "\n")
        return root

    return make


@pytest.fixture(scope="session")
def imagenet_tree():
    """ImageNet's wnid folders with empty files: imagenet_tree(root, "imagenet/images", {"train": 3, "val": 2})."""
    wnids = published("imagenet")["class_spellings"]

    def make(root: Path, home: str, parts: dict[str, int]) -> Path:
        for part, size in parts.items():
            for number, wnid in enumerate(wnids):
                folder = root / home / part / wnid
                folder.mkdir(parents=True, exist_ok=True)
                for image in range(size):
                    (folder / f"{wnid}_{number}_{image}.JPEG").touch()
        return root

    return make


def coop_paths(file: str, label: int, number: int) -> str:
    """A path as the published split of a data set has it, for image `number` of a class."""
    entry = published(file)
    name, folder = entry["classes"][label], entry.get("class_spellings", entry["classes"])[label]
    unique = 1000 * label + number
    if file == "sun397":
        steps = name.split(" ")[::-1]
        return f"{steps[0][0]}/{'/'.join(steps)}/sun_{unique:08d}.jpg"
    return {
        "caltech101": f"{folder}/image_{number:04d}.jpg",
        "oxford_pets": f"{name.capitalize()}_{number}.jpg",
        "stanford_cars": f"cars_{'test' if number % 2 else 'train'}/{unique:06d}.jpg",
        "oxford_flowers": f"image_{unique:06d}.jpg",
        "food101": f"{name}/{unique}.jpg",
        "dtd": f"{name}/{name}_{number:04d}.jpg",
        "eurosat": f"{folder}/{folder}_{number}.jpg",
        "ucf101": f"{folder}/v_{folder.replace('_', '')}_g{number:02d}_c01.jpg",
    }[file]


COOP_HOMES = {
    "caltech101": "caltech-101/101_ObjectCategories",
    "oxford_pets": "oxford_pets/images",
    "stanford_cars": "stanford_cars",
    "oxford_flowers": "oxford_flowers/jpg",
    "food101": "food-101/images",
    "sun397": "sun397/SUN397",
    "dtd": "dtd/images",
    "eurosat": "eurosat/2750",
    "ucf101": "ucf101/UCF-101-midframes",
}


@pytest.fixture(scope="session")
def coop_tree():
    """One of CoOp's data sets with empty files; returns the rows of its split file, not written if split is ""."""

    def make(root: Path, file: str, home: str = "", split: str | None = None, sizes=(4, 2, 3), first: int = 0) -> dict:
        entry, home = published(file), home or COOP_HOMES[file]
        rows, made = {}, set()
        numbers = iter(range(sum(sizes)))
        blocks = {part: [next(numbers) for _ in range(size)] for part, size in zip(("train", "val", "test"), sizes)}
        for part, block in blocks.items():
            rows[part] = []
            for label, name in enumerate(entry["classes"]):
                for number in block:
                    path = coop_paths(file, label, number)
                    rows[part].append([path, label + first, name])
                    if (folder := (root / home / path).parent) not in made:
                        folder.mkdir(parents=True, exist_ok=True)
                        made.add(folder)
                    (root / home / path).touch()
            rows[part].reverse()  # the order is that of the file, not that of the labels
        if split != "":
            place = root / (split or f"{COOP_HOMES[file].split('/')[0]}/{entry['split_file']}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(rows))
        return rows

    return make
