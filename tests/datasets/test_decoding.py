"""Odd images are read as RGB, just as Pillow's `convert` gives them.

Covers: CMYK, palette with and without transparency, 16 bit, alpha, grey with alpha, two colours, floating point, a
picture turned by its EXIF data (which stays as it is stored), GIF, PNG and WebP under a name that ends in jpg, several
frames (the first counts), jfif: through FolderClasses and the wrapper that trainers read with, through `read_image` of
this room and of the toolbox, and by `verify` with `decode`.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.utils import read_image as toolbox_image
from dassl_clip.datasets import FolderClasses
from dassl_clip.datasets.file_checks import read_image
from dassl_clip.datasets.verify import ERROR, verify
from dassl_clip.trainers.images import SeededImages

SIZE = (12, 7)
DRAW = np.random.default_rng(0)
COLOURS = DRAW.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def picture(mode: str) -> Image.Image:
    image = Image.fromarray(COLOURS)
    if mode == "I;16":
        return Image.fromarray(DRAW.integers(0, 500, (SIZE[1], SIZE[0])).astype(np.uint16))
    if mode == "F":
        return Image.fromarray(COLOURS[..., 0].astype(np.float32) * 1.5 - 40)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(COLOURS[..., 1]))
    return image.quantize(16) if mode.startswith("P") else image.convert(mode)


def write(path: Path, kind: str) -> Path:
    """A picture of a kind; the name may lie about the format."""
    rotated = Image.Exif()
    rotated[0x0112] = 6  # turn by 90 degrees to show
    mode, format, options = {
        "cmyk.jpg": ("CMYK", "JPEG", {}),
        "exif.jpg": ("RGB", "JPEG", {"exif": rotated}),
        "palette.png": ("P", "PNG", {}),
        "palette transparent.png": ("P", "PNG", {"transparency": 3}),
        "16 bit.png": ("I;16", "PNG", {}),
        "16 bit.tif": ("I;16", "TIFF", {}),
        "alpha.png": ("RGBA", "PNG", {}),
        "grey alpha.PNG": ("LA", "PNG", {}),
        "two colours.png": ("1", "PNG", {}),
        "grey.jfif": ("L", "JPEG", {}),
        "float.tiff": ("F", "TIFF", {}),
        "gif as.jpg": ("P", "GIF", {"transparency": 3}),
        "png as.JPEG": ("RGBA", "PNG", {}),
        "webp as.jpg": ("RGBA", "WEBP", {"lossless": True}),
        "frames.gif": ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", SIZE, 1)]}),
    }[kind]
    image = picture(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format, **options)
    return path


KINDS = [
    "cmyk.jpg", "exif.jpg", "palette.png", "palette transparent.png", "16 bit.png", "16 bit.tif", "alpha.png",
    "grey alpha.PNG", "two colours.png", "grey.jfif", "float.tiff", "gif as.jpg", "png as.JPEG", "webp as.jpg",
    "frames.gif",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    for part in ("train", "test"):
        for kind in KINDS:
            write(root / part / "thing" / kind, kind)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_odd_images(kind, tree, config):
    cfg = config(tree, [], [])
    items = FolderClasses(cfg).train_x
    assert len(items) == len(KINDS)
    (place,) = (number for number, item in enumerate(items) if Path(item.impath).name == kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Image.open(items[place].impath).convert("RGB")
    assert expected.size == SIZE and len(np.unique(np.asarray(expected))) > 1
    found = [
        SeededImages(cfg, items)[place]["img"],
        read_image(items[place].impath),
        toolbox_image(items[place].impath),
    ]
    for image in found:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(expected))


def test_pictures_are_not_turned_and_frames_are_the_first(tmp_path):
    turned = read_image(write(tmp_path / "exif.jpg", "exif.jpg"))
    assert turned.size == SIZE and Image.open(tmp_path / "exif.jpg").getexif()[0x0112] == 6
    plain = tmp_path / "plain.jpg"
    picture("RGB").save(plain)
    assert np.array_equal(np.asarray(turned), np.asarray(read_image(plain)))
    first = np.asarray(read_image(write(tmp_path / "frames.gif", "frames.gif")))
    assert np.array_equal(first, np.asarray(picture("P").convert("RGB")))


def test_none_is_damaged(tree, config):
    report = verify(FolderClasses, config(tree, [], []), decode=True, jobs=2)
    assert not [finding for finding in report.findings if finding.level == ERROR] and len(report.images) == 2 * len(
        KINDS
    )


def test_what_is_said_of_damage(tree, config):
    for name in ("cmyk.jpg", "palette.png", "gif as.jpg"):
        path = tree / "test" / "thing" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        report = verify(FolderClasses, config(tree, [], []), decode=True)
        path.write_bytes(whole)
        (text,) = (finding.text for finding in report.findings if finding.level == ERROR)
        assert text.startswith(f"{path} cannot be decoded: ")
