"""Files, names, images and seeds."""

from __future__ import annotations

import difflib
import json
import os
import random
import sys
import urllib.request
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .atomic import atomic_write

__all__ = [
    "mkdir_if_missing",
    "check_isfile",
    "read_json",
    "write_json",
    "set_random_seed",
    "download_url",
    "read_image",
    "collect_env_info",
    "listdir_nohidden",
    "get_most_similar_str_to_a_from_b",
    "check_availability",
    "tolist_if_not",
]


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
    """Downloads `url` to the file `dst`, with progress on stdout; `dst` appears only when it is complete."""
    print(f'* url="{url}"')
    print(f'* destination="{dst}"')
    mkdir_if_missing(os.path.dirname(dst))
    with urllib.request.urlopen(url) as answer, atomic_write(dst) as file:
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        while block := answer.read(1 << 16):
            file.write(block)
            done += len(block)
            share = f"{100 * done / total:.0f}%, " if total else ""
            sys.stdout.write(f"\r...{share}{done / 2**20:.1f} MB")
            sys.stdout.flush()
    sys.stdout.write("\n")


def read_image(path: str):
    """The image at `path` as an RGB PIL image.

    Raises:
        OSError: The file is missing or cannot be decoded; the message names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f'Cannot read the image "{path}": {error}') from error


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
