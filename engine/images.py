"""Reading image files that nobody has checked, within bounds of size and time, whichever toolbox is installed.

The toolbox in `toolbox/` decodes within the same bounds, for trainers that run without this package; the original Dassl
toolbox does not. Neither may import the other, so the tests hold both to the same images.
"""

import os
import warnings
from typing import TYPE_CHECKING, BinaryIO

from dassl_clip.results import image_rows
from dassl_clip.results.files import is_web_page, kind_of
from dassl_clip.results.image_formats import known_formats

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: a quarter of a GiB in RGB
MAX_BYTES = 512 << 20  # of an image and its copy in RGB
MAX_RATIO = 500  # a strip would grow without bound when its shorter side is resized
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # greys of more than 8 bits


def read_image(path: str | os.PathLike[str]) -> "Image.Image":
    """An image as RGB, of a file or of a row (`results/image_rows.py`); too large a one is refused from its header.

    Raises:
        OSError: it is missing, too large or cannot be decoded; the message does not name it.
    """
    from PIL import Image, UnidentifiedImageError

    if (kind := kind_of(path)) not in ("a file", "nothing"):
        raise OSError(f"it is {kind}, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on palettes, metadata, sizes
            with Image.open(pillow_source(path), formats=known_formats()) as image:
                check_header(image.mode, *image.size)
                return as_rgb(image)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify image file {os.fsdecode(path)!r}") from None
    except OSError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def pillow_source(path: str | os.PathLike[str]) -> "str | os.PathLike[str] | BinaryIO":
    """What Pillow opens: a path, or the bytes of a row."""
    return path if image_rows.split_address(path) is None else image_rows.open_image(path)


def check_header(mode: str, width: int, height: int) -> None:
    """Refuse an image with too many pixels, one that is too long, or one that would take too much memory.

    Raises:
        OSError: saying which.
    """
    shape = f"its {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise OSError(f"{shape} are more than the {MAX_PIXELS:,} that are decoded")
    own = {"1": 1, "L": 1, "P": 1, "RGB": 0}.get(mode, 6 if mode in DEEP_MODES else 4)
    size = width * height * (4 + own)  # with its copy in RGB, which Pillow keeps in 4 bytes
    if size > MAX_BYTES:
        raise OSError(f"{shape} ({mode}) take {size >> 20} MiB to decode, more than {MAX_BYTES >> 20} MiB")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise OSError(f"{shape} are a strip, more than {MAX_RATIO} times as long as wide")


def as_rgb(image: "Image.Image") -> "Image.Image":
    """An opened image as RGB; greys of more than 8 bits, which Pillow would cut off at 255, are scaled by their range.

    Whole numbers up to 255 are 8 bits in a larger type; those above 4095 are 16 bits, so that 65535 is white. Floats
    reach up to 1 or up to 255.

    Raises:
        OSError: the values are of no such range.
    """
    if image.mode not in DEEP_MODES:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # of an RGB image that would be a second copy
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1 and image.mode == "F":
        white = 1
    elif low >= 0 and high <= 255:
        white = 255
    elif low >= 0 and 4096 <= high <= 65535 and image.mode != "F":
        white = 65535
    else:
        raise OSError(
            f"its grey values ({image.mode}) reach from {low:g} to {high:g}, which is neither 8 nor 16 bits nor 0 to "
            "1: save it with 8 bits"
        )
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(grey), 256):  # the floating-point values of all rows would take eight times the image
        grey[top : top + 256] = values[top : top + 256] * (255 / white) + 0.5
    del values
    return Image.fromarray(grey).convert("RGB")


def inspect_image(path: str) -> tuple[str, str]:
    """Why an image cannot be decoded, and what decoding changes in one that can; both empty for an ordinary image."""
    from PIL import Image

    try:
        rgb = read_image(path)
        with Image.open(pillow_source(path), formats=known_formats()) as image:
            mode, transparent = image.mode, "A" in image.mode or "transparency" in image.info
    except OSError as error:
        try:
            with image_rows.open_image(path) as file:
                start = file.read(64)
        except OSError as trouble:
            return f"cannot be read: {trouble.strerror or trouble}", ""
        if is_web_page(start):
            return "is a web page, not an image: the download failed", ""
        return f"cannot be decoded: {' '.join(str(error).replace(repr(path), 'it').split())}", ""
    if mode in DEEP_MODES:
        return "", f"has grey values of more than 8 bits ({mode}), which are scaled"
    if transparent and rgb.getcolors(maxcolors=1):
        return "", "is of one colour without its transparency, which is not read"
    return "", ""
