"""Finding and reading pictures of one's own; a file that cannot be read is named and left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError
from torch import Tensor, stack
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dassl_clip.datasets.folders import IGNORED_FOLDERS, is_image
from dassl_clip.engine.images import read_image
from dassl_clip.results.errors import UserError
from dassl_clip.results.files import no_file


def find_pictures(given: Sequence[str]) -> list[Path]:
    """The files that were named, and all images in and below the folders, each once, folders in sorted order.

    Raises:
        UserError: a name that does not exist, or no image at all.
    """
    found: dict[Path, None] = {}
    for name in given:
        place = Path(name).expanduser()
        if place.is_dir():
            found.update(dict.fromkeys(_below(place)))
        elif place.is_file():
            found[place] = None
        else:
            raise UserError(no_file(place).replace("no file ", "no file or folder "))
    if not found:
        raise UserError(f"there are no images in {', '.join(given)}: files ending in jpg, png, webp, ... are read")
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in IGNORED_FOLDERS)
        for name in sorted(files):
            if is_image(name) and not name.startswith("."):
                yield Path(place) / name  # a pipe or a link to nothing is named when it is read


class Pictures(Dataset):
    """Path, preprocessed image and reason; the image is None where there is a reason why it cannot be read."""

    def __init__(self, paths: Sequence[Path], preprocess: Callable) -> None:
        self.paths = paths
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | None, str]:
        path = self.paths[index]
        try:
            return path, self.preprocess(read_image(path)), ""
        except UnidentifiedImageError:
            return path, None, "is empty" if not path.stat().st_size else "is no image that can be decoded"
        except OSError as error:
            return path, None, " ".join(str(error).split()) or type(error).__name__


def batches(
    paths: Sequence[Path], preprocess: Callable, size: int, workers: int
) -> Iterator[tuple[list[Path], Tensor | None, list[tuple[Path, str]]]]:
    """Paths and images `[B, 3, H, W]` of what could be read, and paths and reasons of the rest, batch by batch.

    A bar on stderr shows the progress where that is a terminal.
    """
    loader = DataLoader(Pictures(paths, preprocess), batch_size=size, num_workers=workers, collate_fn=_collate)
    with tqdm(total=len(paths), desc="pictures", unit="", leave=False, disable=not sys.stderr.isatty()) as bar:
        for good, images, bad in loader:
            yield good, images, bad
            bar.update(len(good) + len(bad))


def _collate(items: list[tuple[Path, Any, str]]) -> tuple[list[Path], Tensor | None, list[tuple[Path, str]]]:
    good = [(path, image) for path, image, _ in items if image is not None]
    bad = [(path, reason) for path, image, reason in items if image is None]
    return [path for path, _ in good], stack([image for _, image in good]) if good else None, bad
