"""What the benchmarks work on: the class lists of the project, generated pictures, and trainers built on them."""

import contextlib
import csv
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dassl_clip.cli import train
from dassl_clip.clip.backbone import FrozenCLIP, load_backbone
from dassl_clip.engine import registry
from dassl_clip.engine.overrides import resolve_config

ROOT = Path(train.__file__).resolve().parents[1]
LISTS = ROOT / "datasets" / "lists"
PICTURE = (500, 375)  # width and height of a typical picture of ImageNet


def class_names(file: str) -> list[str]:
    """The classes of a list that the project ships, in label order; a name that comes again gets a number.

    Args:
        file: Its name without `.json`: `pacs`, `office_home`, `domainnet`, `imagenet`.
    """
    names, seen = [], {}
    for name in json.loads((LISTS / f"{file}.json").read_text(encoding="utf-8"))["classes"]:
        seen[name] = seen.get(name, 0) + 1
        names.append(name.replace("_", " ") + (f" {seen[name]}" if seen[name] > 1 else ""))
    return names


@functools.lru_cache(maxsize=1)
def backbone(architecture: str, device: str) -> FrozenCLIP:
    """The frozen CLIP that the cases of a script share, loaded when the first one is built."""
    return load_backbone(architecture, device=device)


def picture(seed: int, size: tuple[int, int] = PICTURE) -> Image.Image:
    """A generated picture with structure at all scales, which compresses about as a photograph does."""
    draw = np.random.default_rng(seed)
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (4, 16, 64):
        coarse = draw.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = draw.normal(0, 6, pixels.shape).astype(np.float32)
    return Image.fromarray((pixels / 3 + noise).clip(0, 255).astype(np.uint8))


def make_pictures(folder: Path, classnames: Sequence[str], train_images: int, test_images: int) -> Path:
    """Write `train_images` and `test_images` JPEG files in all, over the classes in turn, and a csv of them.

    Every class gets at least one image in training. Of each part 64 files differ; the others are links to them.

    Returns:
        The csv file, for the data set `Manifest`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in (("train", max(train_images, len(classnames))), ("test", test_images)):
        for number in range(count):
            path, original = folder / f"{split}{number}.jpg", folder / f"{split}{number % 64}.jpg"
            if number < 64:
                picture(number + 1000 * (split == "test")).save(path, quality=90)
            else:
                path.hardlink_to(original)
            rows.append((path.name, classnames[number % len(classnames)], number % len(classnames), split))
    listing = folder / "manifest.csv"
    with listing.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "class", "label", "split"), *rows])
    return listing


def build_trainer(name: str, settings: Sequence[object], arguments: Sequence[str] = (), device: str = "cpu"):
    """A trainer of the registry, built without its console lines.

    Args:
        name: The trainer's.
        settings: KEY VALUE pairs, flat.
        arguments: Flags of `train.py`.
        device: `cpu`, or `cuda`.
    """
    registry.register()
    pairs = [str(word) for word in (*settings, "USE_CUDA", device.startswith("cuda"))]
    overrides, _ = train.parse(["--trainer", name, "--seed", "1", *arguments, *pairs])
    import dassl.engine

    with contextlib.redirect_stdout(io.StringIO()):
        return dassl.engine.build_trainer(resolve_config(overrides))
