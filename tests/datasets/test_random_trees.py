"""Random trees and random lists: all is accounted for, or an error names a path.

Covers: FolderDomains, FolderClasses and PACS over trees of random depth, names, endings and gaps: either every image is
trained on, validated on, tested, or named in a warning, or the loader refuses with a sentence that names a path;
Manifest and split files with random damage; nothing ever fails in another way.
"""

import json
import logging
import random
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, EuroSAT, FolderClasses, FolderDomains, Manifest

IMAGES = ("1.jpg", "2.JPG", "3.png", "b c.jpeg", "ü.webp", "x.gif")
OTHERS = ("notes.txt", "Thumbs.db", ".hidden.jpg", "archive.zip")
DOMAINS = ("art_painting", "Art", "cartoon", "photo", "PHOTO", "sketch", "images", "kfold", "splits", "extra", "train")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person", "Dog", "zebra", "train", "test", "val")
SEEDS = range(60)


def random_tree(root: Path, draw: random.Random) -> list[Path]:
    """Images below two or three levels of folders; some at odd places."""
    images = []
    whole = draw.random() < 0.5  # else folders are left out at random
    for domain in draw.sample(DOMAINS, draw.randint(1, 6)):
        for name in CLASSES[:7] if whole else draw.sample(CLASSES, draw.randint(0, 8)):
            folder = root / domain / name
            if draw.random() < 0.05:
                folder /= draw.choice(CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            for file in draw.sample(IMAGES, draw.randint(0 if draw.random() < 0.1 else 1, 4)):
                (folder / file).touch()
                images.append(folder / file)
            for file in draw.sample(OTHERS, draw.randint(0, 1)):
                (folder / file).touch()
        if draw.random() < 0.1:
            (root / domain).mkdir(exist_ok=True)
            (root / domain / "loose.jpg").touch()
            images.append(root / domain / "loose.jpg")
    return [image for image in images if image.name != ".hidden.jpg"]


def accounted(dataset, images: list[Path], told: str) -> list[Path]:
    """The images that are neither used nor named, by themselves or by a folder above, in a warning."""
    used = {item.impath for items in (dataset.train_x, dataset.val, dataset.test) for item in items or []}
    words = told.replace(",", " ").replace(":", " ").split()
    return [
        image
        for image in images
        if str(image) not in used and not any(part in words for part in (image.name, *image.parts[-4:-1]))
    ]


def refused(loader, cfg, root: Path):
    """The data set, or None if it refuses with a sentence that names a path or an option."""
    try:
        return loader(cfg)
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error) or "DATASET." in str(error), error
        assert len(str(error)) > 20
        return None


@pytest.mark.parametrize("seed", SEEDS)
def test_trees(seed, tmp_path, config, caplog):
    images = random_tree(tmp_path / "tree", draw := random.Random(seed))
    root = tmp_path / "tree"
    root.mkdir(exist_ok=True)
    caplog.set_level(logging.WARNING)
    plain = refused(FolderClasses, config(root, [], [], PROTOCOL=draw.choice(["dassl", "all-images"])), root)
    if plain is not None:
        assert accounted(plain, images, caplog.text) == []
    try:
        domains = FolderDomains.list_domains(config(root, [], []))
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error)
        domains = []
    caplog.clear()
    for loader, names in ((FolderDomains, domains), (PACS, ["art_painting", "cartoon", "photo", "sketch"])):
        if len(names) > 1:
            target = draw.choice(names)
            sources = [name for name in names if name != target] if loader is FolderDomains else [names[0]]
            data = refused(loader, config(root, sources, [target]), root)
            if data is not None and loader is FolderDomains:
                assert accounted(data, images, caplog.text) == []
            if data is not None:
                assert {item.impath for item in data.test} and data.train_x


@pytest.mark.parametrize("seed", range(40))
def test_lists(seed, tmp_path, coop_tree, config):
    draw = random.Random(seed)
    rows = coop_tree(tmp_path, "eurosat", sizes=(2, 1, 1))
    text = json.dumps(rows)
    lines = ["path,class,split"] + [f"2750/{path},{name},{part}" for part in rows for path, _, name in rows[part]]
    for path, loader, content in (
        (tmp_path / "eurosat/split_zhou_EuroSAT.json", EuroSAT, text),
        (tmp_path / "eurosat/manifest.csv", Manifest, "\n".join(lines)),
    ):
        letters = list(content)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(letters))
            letters[place] = draw.choice(["", "x", ",", '"', "/", "[", "7", "\n", "é", "\\", " "])
        path.write_text("".join(letters), encoding="utf-8")
        data = refused(loader, config(tmp_path / "eurosat", [], []), tmp_path)
        if data is not None:
            assert {*map(str, (tmp_path / "eurosat/2750").rglob("*.jpg"))} >= {item.impath for item in data.test}
