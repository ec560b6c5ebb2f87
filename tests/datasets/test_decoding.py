"""Odd images are read as RGB, just as Pillow's `convert` gives them but for greys of more than 8 bits.

Covers: CMYK, palette with and without transparency, alpha, grey with alpha, two colours, a picture turned by its EXIF
data (which stays as it is stored), GIF, PNG and WebP under a name that ends in jpg, several frames (the first counts),
jfif: through FolderClasses and the wrapper that trainers read with, through `read_image` of this package and of the
toolbox, and by `verify` with `decode`; greys of 16 bits, of 32, and of floating point are scaled by their range or
refused; what an image may take in memory (row 8.8).
"""

import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.utils import read_image as toolbox_image
from dassl_clip.datasets import FolderClasses
from dassl_clip.datasets.verify import ERROR, verify
from dassl_clip.engine.data import SeededImages
from dassl_clip.engine.images import inspect_image, read_image

SIZE = (12, 7)
DRAW = np.random.default_rng(0)
COLOURS = DRAW.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def picture(mode: str) -> Image.Image:
    image = Image.fromarray(COLOURS)
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
        "alpha.png": ("RGBA", "PNG", {}),
        "grey alpha.PNG": ("LA", "PNG", {}),
        "two colours.png": ("1", "PNG", {}),
        "grey.jfif": ("L", "JPEG", {}),
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
    "cmyk.jpg", "exif.jpg", "palette.png", "palette transparent.png", "alpha.png", "grey alpha.PNG", "two colours.png",
    "grey.jfif", "gif as.jpg", "png as.JPEG", "webp as.jpg", "frames.gif",
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
    report = verify(FolderClasses, config(tree, [], []), inspect=inspect_image, jobs=2)
    assert not [finding for finding in report.findings if finding.level == ERROR] and len(report.images) == 2 * len(
        KINDS
    )


def test_what_is_said_of_damage(tree, config):
    for name in ("cmyk.jpg", "palette.png", "gif as.jpg"):
        path = tree / "test" / "thing" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        report = verify(FolderClasses, config(tree, [], []), inspect=inspect_image)
        path.write_bytes(whole)
        (text,) = (finding.text for finding in report.findings if finding.level == ERROR)
        assert text.startswith(f"{path} cannot be decoded: ")


GREYS = COLOURS[..., 0].copy()
GREYS[0, :2] = 0, 255
DEEP = {  # the same grey picture, stored with more bits
    "16 bit.png": GREYS.astype(np.uint16) * 257,
    "16 bit.tif": GREYS.astype(np.uint16) * 257,
    "16 bit big-endian.tif": (GREYS.astype(np.uint16) * 257).astype(">u2"),
    "8 of 16 bit.png": GREYS.astype(np.uint16),
    "32 bit.tif": GREYS.astype(np.int32) * 257,
    "0 to 1.tif": GREYS.astype(np.float32) / 255,
    "0 to 255.tif": GREYS.astype(np.float32),
}
REFUSED = {
    "12 bit.png": GREYS.astype(np.uint16) * 16,
    "32 bit.tif": GREYS.astype(np.int32) * 65793 * 100,
    "negative.tif": GREYS.astype(np.float32) * 1.5 - 40,
    "nan.tif": np.where(GREYS > 99, np.nan, GREYS.astype(np.float32)),
}


def write_grey(path: Path, values: np.ndarray) -> Path:
    """A picture of one band; big-endian numbers stay so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values.dtype.str == ">u2":
        Image.frombytes("I;16B", SIZE, values.tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", DEEP)
def test_3_3_greys_of_more_than_8_bits_are_scaled(name, tmp_path):
    path = str(write_grey(tmp_path / name, DEEP[name]))
    expected = np.repeat(GREYS[..., None], 3, axis=2)
    for image in (read_image(path), toolbox_image(path)):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_3_3_greys_of_no_known_range_are_refused(name, tmp_path):
    path = str(write_grey(tmp_path / name, REFUSED[name]))
    for reader in (read_image, toolbox_image):
        with pytest.raises(OSError, match=r"its grey values \((I;16|I|F)\) reach from .* save it with 8 bits"):
            reader(path)


def test_3_3_verify_tells_of_scaled_and_of_transparent_images(tmp_path, config):
    shape = Image.new("RGBA", SIZE)
    shape.putalpha(Image.fromarray(GREYS))
    for part in ("train", "test"):
        write_grey(tmp_path / part / "thing" / "deep.png", DEEP["16 bit.png"])
        shape.save(tmp_path / part / "thing" / "shape.png")
        write(tmp_path / part / "thing" / "alpha.png", "alpha.png")
    texts = [
        finding.text for finding in verify(FolderClasses, config(tmp_path, [], []), inspect=inspect_image).findings
    ]
    assert any(
        text.startswith("2 images, each of which has grey values of more than 8 bits (I;16), wh") for text in texts
    )
    assert any(text.startswith("2 images, each of which is of one colour without its transparency") for text in texts)
    assert len(texts) == 2


def peak_of(read, path) -> int:
    """MiB that a process of its own needs beyond what it has, to read an image."""

    def high() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) >> 10

    end, begin = os.pipe()
    if not (child := os.fork()):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here on
        before = high()
        read(path)
        os.write(begin, str(high() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(begin)
    with open(end) as file:
        return int(file.read())


@pytest.mark.parametrize("read", [read_image, toolbox_image])
@pytest.mark.parametrize(("mode", "ending", "most"), [("RGB", "jpg", 4), ("RGBA", "png", 8), ("I;16", "png", 10)])
def test_8_8_decoding_takes_one_copy(mode, ending, most, read, tmp_path):
    """Row 8.8: no copy of an image that is RGB already, no array of floats for a deep one."""
    side = 4000
    path = tmp_path / f"large.{ending}"
    Image.new(mode, (side, side), 255).save(path, compress_level=1)
    assert peak_of(read, str(path)) < most * side * side / 2**20 + 12


@pytest.mark.parametrize("read", [read_image, toolbox_image])
def test_8_8_an_image_that_would_take_too_much_is_refused_from_its_header(read, tmp_path):
    for mode, side, size in (("RGBA", 8300, 525), ("I;16", 7400, 522)):
        path = tmp_path / f"{mode[:1]}.png"
        Image.new(mode, (side, 1)).save(path)
        content = bytearray(path.read_bytes())
        content[20:24] = side.to_bytes(4, "big")  # the height of a header that promises a square
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        with pytest.raises(OSError, match=f"take {size} MiB to decode, more than 512 MiB"):
            read(str(path))
