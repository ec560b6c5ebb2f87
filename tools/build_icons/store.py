"""Write the data set as it ships: pictures, split, sources, and a manifest with their hashes."""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .packs import Pack, packs_for
from .selection import DOMAINS, SPLIT_SEED, SPLITS, Curated, split_pictures

SPLIT_NAME = "split.csv"
SOURCES_NAME = "SOURCES.csv"
MANIFEST_NAME = "manifest.json"
MAX_COLOURS = 256
PACK_FIELDS = ("pack", "title", "author", "author_url", "spdx", "licence", "licence_url", "npm", "version")
SOURCE_FIELDS = ("path", "icon", *PACK_FIELDS, "changes")
CHANGES = "rendered to 64 x 64 pixels, centred on white, currentColor black"


def picture_path(picture: Curated) -> str:
    """Path of a picture below the data set's folder: domain/class/pack--icon.png."""
    return f"{picture.domain}/{picture.label.replace(' ', '_')}/{picture.pack}--{picture.icon}.png"


def encode_png(pixels: np.ndarray) -> bytes:
    """The smallest of the lossless forms: grey, palette in order of colour, or RGB.

    Args:
        pixels: uint8 [P, P, 3].
    """
    colours, positions = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if (pixels == pixels[..., :1]).all():
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]), "L")
    elif len(colours) <= MAX_COLOURS:
        image = Image.fromarray(positions.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        image.putpalette(colours.astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(pixels, "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_png(path: Path) -> np.ndarray:
    """A stored picture as RGB bytes, uint8 [P, P, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def pack_facts(pack: Pack) -> list[str]:
    """A pack's `PACK_FIELDS`."""
    return [getattr(pack, field) for field in PACK_FIELDS]


def pixel_digest(paths: Sequence[str], pictures: Iterable[np.ndarray]) -> str:
    """sha256 (hex) over paths and RGB bytes: the same for the same pictures, however a PNG library packs them."""
    digest = hashlib.sha256()
    for path, pixels in zip(paths, pictures):
        digest.update(path.encode("utf-8") + b"\0" + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_csv(path: Path, fields: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows(rows)


def write_data_set(pictures: Sequence[Curated], pixels: np.ndarray, folder: Path) -> dict:
    """Write all pictures, `split.csv`, `SOURCES.csv` and `manifest.json`, in place of what the folder held.

    Args:
        pictures: the curated pictures, sorted.
        pixels: their RGB bytes, uint8 [N, P, P, 3].
        folder: the data set's folder.

    Returns:
        the manifest.
    """
    for domain in DOMAINS:
        shutil.rmtree(folder / domain, ignore_errors=True)
    paths = [picture_path(picture) for picture in pictures]
    for path, picture in zip(paths, pixels):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode_png(picture))
    split = split_pictures(pictures)
    _write_csv(
        folder / SPLIT_NAME,
        ("path", "domain", "class", "split", "group"),
        ((path, p.domain, p.label, split[p], p.group) for path, p in zip(paths, pictures)),
    )
    packs = {pack.pack: pack for pack in packs_for("data")}
    _write_csv(
        folder / SOURCES_NAME,
        SOURCE_FIELDS,
        ((path, p.icon, *pack_facts(packs[p.pack]), CHANGES) for path, p in zip(paths, pictures)),
    )
    manifest = {
        "pictures": len(paths),
        "classes": sorted({picture.label for picture in pictures}),
        "domains": list(DOMAINS),
        "split_seed": SPLIT_SEED,
        "split": {name: sum(part == name for part in split.values()) for name in SPLITS},
        "pixels_sha256": pixel_digest(paths, pixels),
        "files": {name: file_digest(folder / name) for name in (*paths, SOURCES_NAME, SPLIT_NAME)},
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_split(folder: Path) -> list[dict[str, str]]:
    """Rows of `split.csv`: path, domain, class, split, group.

    Raises:
        FileNotFoundError: if the data set has not been written.
    """
    path = folder / SPLIT_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `python -m tools.build_icons --data-only` writes the data set.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def damaged_files(folder: Path) -> list[str]:
    """Files of the manifest that are missing or changed, and pictures that it does not list."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    wrong = [
        name
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
    extra = {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")} - set(manifest["files"])
    return wrong + sorted(extra)
