"""Files, names, images and seeds."""

from __future__ import annotations

import difflib
import functools
import json
import os
import random
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .atomic import atomic_write
from .on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, errno="errno", osp="os.path", PIL="PIL", Image="PIL.Image")

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: a quarter of a GiB in RGB
PATIENCE = 60  # seconds without a download getting on
MAX_BYTES = 512 << 20  # of an image and its copy in RGB
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # greys of more than 8 bits
MAX_RATIO = 500  # a strip would grow without bound when its shorter side is resized


def mkdir_if_missing(dirname: str) -> None:
    """Makes a folder and its parents; silent if it is there, or if the name is empty (the current folder)."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file; warns when it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def read_json(fpath: str) -> Any:
    """The object in a JSON file."""
    with open(fpath, encoding="utf-8") as file:
        return json.load(file)


def write_json(obj: Any, fpath: str) -> None:
    """Writes an object as JSON, indented by 4, making the folder of `fpath` if needed."""
    mkdir_if_missing(os.path.dirname(fpath))
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def set_random_seed(seed: int) -> None:
    """Seeds the global generators of random, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def download_url(url: str, dst: str) -> None:
    """Downloads `url` to the file `dst`, with progress on stdout; `dst` appears only when it is complete.

    Raises:
        OSError: The file came cut, or less than 64 KiB of it in a minute.
    """
    print(f'* url="{url}"')
    print(f'* destination="{dst}"')
    mkdir_if_missing(os.path.dirname(dst))
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer, atomic_write(dst) as file:
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        begin, before = time.monotonic(), 0
        while block := answer.read1(1 << 16):
            file.write(block)
            done += len(block)
            if time.monotonic() - begin > PATIENCE:
                if done - before < 1 << 16:
                    raise OSError(f"{url} gave {done - before} bytes in {PATIENCE} seconds; try again later")
                begin, before = time.monotonic(), done
            share = f"{100 * done / total:.0f}%, " if total else ""
            sys.stdout.write(f"\r...{share}{done / 2**20:.1f} MB")
            sys.stdout.flush()
        if done < total:
            raise OSError(f"{url} ended after {done} of {total} bytes; fetch it again")
    sys.stdout.write("\n")


def read_image(path: str):
    """The image at `path` as an RGB PIL image.

    Only the formats that data sets come in are decoded (an EPS file, for one, would be run as a program), and nothing
    beyond `MAX_PIXELS` pixels; a larger file is refused from its header.

    Raises:
        OSError: The file is missing, too large or cannot be decoded; the message names it.
    """
    from PIL import Image

    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe may never end
        raise OSError(f'Cannot read the image "{path}": it is not a regular file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is stricter
            with Image.open(path, formats=_known_formats()) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise OSError(f"its {width} x {height} pixels are more than the {MAX_PIXELS:,} that are decoded")
                own = {"1": 1, "L": 1, "P": 1, "RGB": 0}.get(image.mode, 6 if image.mode in _DEEP_MODES else 4)
                size = width * height * (4 + own)  # with its copy in RGB, which Pillow keeps in 4 bytes
                if size > MAX_BYTES:
                    raise OSError(
                        f"its {width} x {height} pixels ({image.mode}) take {size >> 20} MiB to decode, more than "
                        f"{MAX_BYTES >> 20} MiB"
                    )
                if max(width, height) > MAX_RATIO * min(width, height):
                    raise OSError(
                        f"its {width} x {height} pixels are a strip, more than {MAX_RATIO} times as long as wide"
                    )
                return _as_rgb(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        raise OSError(f'Cannot read the image "{path}": {str(error) or type(error).__name__}') from error


def _as_rgb(image):
    """An opened image as RGB; greys of more than 8 bits, which Pillow would cut off at 255, are scaled by their range.

    Whole numbers up to 255 are 8 bits in a larger type; those above 4095 are 16 bits, so that 65535 is white. Floats
    reach up to 1 or up to 255.
    """
    if image.mode not in _DEEP_MODES:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # of an RGB image that would be a second copy
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


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of `IMAGE_FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def collect_env_info() -> str:
    """A report on the software and hardware: torch's own, and Pillow's version."""
    import PIL
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Names in a folder that do not start with a dot.

    Args:
        path: The folder.
        sort: Part of the interface; the names are in sorted order either way, so that no run depends on the disk.
    """
    return sorted(name for name in os.listdir(path) if not name.startswith("."))


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string of `b` most like `a`, or None when `b` is empty or nothing is alike."""
    scored = [(difflib.SequenceMatcher(None, a, name).ratio(), name) for name in b]
    if not scored:
        return None
    score, name = max(scored, key=lambda pair: pair[0])
    return name if score > 0 else None


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Checks that a name is among those that exist.

    Raises:
        ValueError: It is not; the message lists what exists and the closest name.
    """
    available = list(available)
    if requested not in available:
        closest = get_most_similar_str_to_a_from_b(requested, available)
        guess = f" (do you mean [{closest}]?)" if closest else ""
        raise ValueError(f"The requested one is expected to belong to {available}, but got [{requested}]{guess}")


def tolist_if_not(x: Any) -> list:
    """`x` itself if it is a list, otherwise a list that holds it."""
    return x if isinstance(x, list) else [x]
