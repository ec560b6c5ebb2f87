"""Dassl's records of images: made in bulk without asking the disk for each, and named by one hash."""

import contextlib
import gc
import hashlib
from collections.abc import Iterable, Iterator

from dassl.data.datasets import Datum

from .folders import ImageFile


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Hold Python's search for circular garbage, which would go through all the images again and again."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def make_datum(path: str, label: int, domain: int, name: str) -> Datum:
    """Dassl's record of an image that a listing has shown to exist, without asking the disk for each one again."""
    datum = Datum.__new__(Datum)
    datum._impath, datum._label, datum._domain, datum._classname = path, label, domain, name
    return datum


def listing_hash(images: Iterable[ImageFile]) -> str:
    """sha256 (hex) over the sorted lines "path, label" of images; paths start at the domain, in canonical names."""
    digest = hashlib.sha256()
    for line in sorted(f"{image.key}\t{image.label}\n" for image in images):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
