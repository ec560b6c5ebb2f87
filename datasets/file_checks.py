"""Looking into the image files themselves: sizes, copies of each other, whether they can be decoded."""

import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from dassl_clip.results.files import kind_of

from .folders import ImageFile

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: a quarter of a GiB in RGB
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # greys of more than 8 bits
MAX_BYTES = 512 << 20  # of an image and its copy in RGB
MAX_RATIO = 500  # a strip would grow without bound when its shorter side is resized
T = TypeVar("T")
Progress = Callable[[Iterable[T], int, str], Iterable[T]]  # items, their number, what is done


def no_progress(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """The items themselves."""
    return items


def web_page(start: bytes) -> bool:
    """Whether a file begins as a web page does, such as the notice that a server sends in place of a file."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def sizes(images: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, int, str]]:
    """Size of each image in bytes, or -1 and the reason why it is not known."""
    for image in images:
        try:
            yield image, os.stat(image.path).st_size, ""
        except OSError as error:
            yield image, -1, f"cannot be read: {error.strerror}"


def broken_files(
    images: Sequence[ImageFile], decode: bool = False, jobs: int = 1, progress: Progress = no_progress
) -> list[tuple[ImageFile, str]]:
    """Images that are empty, cannot be read or, if asked, cannot be decoded, with the reason.

    Args:
        images: the images.
        decode: whether to decode each image as training would, which takes long.
        jobs: threads that decode.
        progress: wraps the images as they are decoded.
    """
    bad = [(image, reason or "is empty (0 bytes)") for image, size, reason in sizes(images) if size <= 0]
    if not decode:
        return bad
    known = {image.path for image, _ in bad}
    rest = [image for image in images if image.path not in known]
    with ThreadPoolExecutor(jobs) as pool:
        reasons = progress(pool.map(lambda image: decoding_error(image.path), rest), len(rest), "decoding")
        return bad + [(image, reason) for image, reason in zip(rest, reasons) if reason]


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_image(path: str | os.PathLike[str]) -> "Image.Image":
    """An image as RGB, decoded within bounds, whichever toolbox is installed.

    Only `FORMATS` are decoded (Pillow runs a program on others, such as EPS), and nothing beyond `MAX_PIXELS`, of which
    the header tells. The toolbox has the same function.

    Raises:
        OSError: it is missing, too large or cannot be decoded; the message does not name it.
    """
    from PIL import Image

    if (kind := kind_of(path)) not in ("a file", "nothing"):
        raise OSError(f"it is {kind}, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on palettes, metadata, sizes
            with Image.open(path, formats=known_formats()) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise OSError(f"its {width} x {height} pixels are more than the {MAX_PIXELS:,} that are decoded")
                check_memory(image.mode, width, height)
                if max(width, height) > MAX_RATIO * min(width, height):
                    raise OSError(
                        f"its {width} x {height} pixels are a strip, more than {MAX_RATIO} times as long as wide"
                    )
                return as_rgb(image)
    except OSError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def check_memory(mode: str, width: int, height: int) -> None:
    """Refuse an image that would take more than `MAX_BYTES` in memory, by its mode: itself, and its copy in RGB.

    Raises:
        OSError: it would.
    """
    own = {"1": 1, "L": 1, "P": 1, "RGB": 0}.get(mode, 6 if mode in DEEP_MODES else 4)
    size = width * height * (4 + own)  # Pillow keeps RGB in 4 bytes
    if size > MAX_BYTES:
        raise OSError(
            f"its {width} x {height} pixels ({mode}) take {size >> 20} MiB to decode, more than {MAX_BYTES >> 20} MiB"
        )


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


def decoding_note(path: str) -> str:
    """What decoding changes in an image that can be decoded, or an empty text."""
    from PIL import Image

    try:
        with Image.open(path, formats=known_formats()) as image:
            mode, clear = image.mode, "A" in image.mode or "transparency" in image.info
    except Exception:  # told of by `decoding_error`
        return ""
    if mode in DEEP_MODES:
        return f"has grey values of more than 8 bits ({mode}), which are scaled"
    if clear and all(low == high for low, high in read_image(path).getextrema()):
        return "is of one colour without its transparency, which is not read"
    return ""


def decoding_error(path: str) -> str:
    """Why an image cannot be opened as RGB, or an empty text."""
    try:
        read_image(path)
    except OSError as error:
        try:
            with open(path, "rb") as file:
                start = file.read(64)
        except OSError as trouble:
            return f"cannot be read: {trouble.strerror}"
        if web_page(start):
            return "is a web page, not an image: the download failed"
        return f"cannot be decoded: {' '.join(str(error).replace(repr(path), 'it').split())}"
    return ""


def copies(images: Sequence[ImageFile], progress: Progress = no_progress) -> list[list[ImageFile]]:
    """Groups of images whose files are equal byte by byte.

    Only files that share their size with another one are read.
    """
    by_size: dict[int, list[ImageFile]] = {}
    for image, size, _ in sizes(images):
        by_size.setdefault(size, []).append(image)
    read = [image for size, group in by_size.items() if size > 0 and len(group) > 1 for image in group]
    by_content: dict[str, list[ImageFile]] = {}
    for image in progress(read, len(read), "comparing"):
        with open(image.path, "rb") as file:
            by_content.setdefault(hashlib.sha256(file.read()).hexdigest(), []).append(image)
    return [group for group in by_content.values() if len(group) > 1]
