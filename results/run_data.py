"""The data of a run: which images it trained, validated and tested on, with which labels, under one fingerprint.

A run's data is the list of its images and the class names in label order. Of each image it holds the part (train, val,
test, or unlabelled), the label, the size in bytes and the name: `domain/class/file` in canonical names where a loader
of this project read it, otherwise the path below the folder that all images share. Of a fixed sample of the tested
images, and of another one of the others, it holds the content too. A run writes the list into its folder
(`data.tsv.gz`) and the fingerprint, the SHA-256 of the list, into its record and checkpoints. A finished run counts, a
checkpoint is resumed, and records share a table only where the data agree.

What the fingerprint sees: an image that was added, removed, renamed, or moved to another class or part; another size;
other or reordered class names; other content in a sample, which is every image of up to `SAMPLED`, otherwise
`SAMPLED` of them (of a long file its first and last `EDGE` bytes). What it does not see: other content of exactly the
same size in an image outside the samples. The folder above the images may be another one.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .files import write_bytes_atomically
from .image_rows import open_image, size_of

DATA_NAME = "data.tsv.gz"
SAMPLED = 256
EDGE = 512 * 1024
VERSION = 1
NOT_RECORDED = "data not recorded"
PARTS = {"train": "train_x", "val": "val", "test": "test", "unlabelled": "train_u"}  # part -> attribute of a data set


class Image(NamedTuple):
    """One image of a run; `size` is -1 for what is no file, `content` "" outside the sample."""

    part: str
    label: int
    size: int
    content: str
    path: str


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        classnames: class names in label order.
        images: sorted by part, label and path.
        listing: SHA-256 over paths and labels of every image that the run chose from, "" where it is not known.
        names: SHA-256 over the names of all domains and classes: data sets that differ here share no table.
        drawn_tests: whether the seed decides which images are tested.
    """

    classnames: tuple[str, ...]
    images: tuple[Image, ...]
    listing: str = ""
    names: str = ""
    drawn_tests: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over class names and images."""
        return _digest(self.classnames, self.images)

    def facts(self) -> dict[str, Any]:
        """What a record holds of it."""
        parts = [image.part for image in self.images]
        return {
            "fingerprint": self.fingerprint,
            "test": _digest(self.classnames, (image for image in self.images if image.part == "test")),
            "listing": self.listing,
            "names": self.names,
            "drawn_tests": self.drawn_tests,
            "counts": {part: parts.count(part) for part in dict.fromkeys(parts)},
            "sampled": len({image.path for image in self.images if image.content}),
        }


def data_of(dataset: Any) -> RunData:
    """The data of a Dassl data set, asked of the disk now; one `stat` for each image.

    Args:
        dataset: with the lists `train_x`, `val`, `test`, `train_u` and `classnames`; a loader of this project also says
            what it chose from (`listing`, `domains`, `drawn_tests`).
    """
    lists = {part: getattr(dataset, name, None) or () for part, name in PARTS.items()}
    classnames = tuple(str(name) for name in dataset.classnames)
    domains = sorted(str(name) for name in getattr(dataset, "domains", None) or ())
    triples = [(part, int(item.label), str(item.impath)) for part, items in lists.items() for item in items]
    images = _images(triples, getattr(dataset, "image_keys", None))
    return RunData(
        classnames,
        tuple(images),
        str(getattr(dataset, "listing", "")),
        hashlib.sha256(json.dumps([domains, classnames]).encode()).hexdigest(),
        bool(getattr(dataset, "drawn_tests", False)),
    )


def _images(items: Sequence[tuple[str, int, str]], names: Mapping[tuple[str, int], str] | None) -> list[Image]:
    """Sorted images of triples of part, label and path on the disk.

    Args:
        items: the triples.
        names: path on the disk and label -> name in the list (a file of two labels has two names); None: the path below
            the folder that all images share.
    """
    sizes = {path: _size(path) for path in dict.fromkeys(path for _, _, path in items)}
    folders = {os.path.dirname(os.path.abspath(path)) for path in sizes}
    shared = len(os.path.commonpath(folders)) if folders else 0
    below = names or {(path, label): os.path.abspath(path)[shared:].lstrip(os.sep) for _, label, path in items}
    # The sample follows the names alone, spread by a checksum, so that an added image hardly changes it. Tested images
    # have one of their own: runs that were trained on different draws agree in what they tested.
    tested = {path for part, _, path in items if part == "test"}
    pools = tested, sizes.keys() - tested
    order = {path: (zlib.crc32(os.fsencode(name)), name) for (path, _), name in below.items()}
    content = {path: _content(path) for pool in pools for path in heapq.nsmallest(SAMPLED, pool, key=order.__getitem__)}
    images = (Image(part, label, sizes[path], content.get(path, ""), below[path, label]) for part, label, path in items)
    return sorted(images)


def _size(path: str) -> int:
    try:
        return size_of(path)
    except OSError:
        return -1


def _content(path: str) -> str:
    """The SHA-256 of a file, of a long one its two ends; "" for what cannot be read."""
    try:
        with open_image(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(file.read(EDGE))
            if size > EDGE:
                file.seek(max(EDGE, size - EDGE))
                digest.update(file.read(EDGE))
    except OSError:
        return ""
    return digest.hexdigest()


def _digest(classnames: Sequence[str], images: Iterable[Image]) -> str:
    digest = hashlib.sha256(json.dumps(list(classnames)).encode())
    digest.update("".join(map(_line, images)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _line(image: Image) -> str:
    path = image.path.replace("\\", "\\\\").replace("\n", "\\n")  # a line holds one image, whatever its name
    return f"{image.part}\t{image.label}\t{image.size}\t{image.content}\t{path}\n"


def write_data(folder: Path, data: RunData) -> None:
    """Write the list of a run's images into its folder.

    Raises:
        OSError: The disk refuses.
    """
    facts = {"version": VERSION, "classnames": data.classnames, "fingerprint": data.fingerprint}
    facts |= {"listing": data.listing, "names": data.names, "drawn_tests": data.drawn_tests}
    text = json.dumps(facts) + "\n" + "".join(map(_line, data.images))
    packed = gzip.compress(text.encode("utf-8", "surrogateescape"), compresslevel=1, mtime=0)
    write_bytes_atomically(folder / DATA_NAME, packed)


def read_data(folder: Path) -> RunData | None:
    """The data that a run wrote into its folder; None where there is no such list, or none that is whole."""
    try:
        with gzip.open(folder / DATA_NAME) as file:
            first, *lines = file.read().decode("utf-8", "surrogateescape").split("\n")[:-1]
        facts = json.loads(first)
        images = []
        for part, label, size, content, path in (line.split("\t", 4) for line in lines):
            if "\\" in path:
                path = re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), path)
            images.append(Image(part, int(label), int(size), content, path))
        whole = tuple(facts["classnames"]), tuple(images)
        data = RunData(*whole, facts["listing"], facts["names"], bool(facts["drawn_tests"]))
        return data if facts["version"] == VERSION and facts["fingerprint"] == data.fingerprint else None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error):
        return None


def differences(before: RunData, now: RunData) -> str:
    """What differs between two runs' data, as one phrase with a first example each; "" where they agree."""
    if before.fingerprint == now.fingerprint:
        return ""
    texts = []
    if before.classnames != now.classnames:
        texts.append(first_difference(before.classnames, now.classnames, "class"))
    old, new = _by_path(before.images), _by_path(now.images)
    added, removed = [path for path in new if path not in old], [path for path in old if path not in new]
    both = [path for path in old if path in new]
    pairs = {path: (old[path][0], new[path][0]) for path in both}
    changed = dict.fromkeys(
        path
        for path, (one, other) in pairs.items()
        if one.size != other.size or (one.content and other.content and one.content != other.content)
    )
    uses = [{path: {image[:2] for image in images} for path, images in found.items()} for found in (old, new)]
    moved = [path for path in both if path not in changed and uses[0][path] != uses[1][path]]
    kinds = ((added, "added"), (removed, "removed"), (changed, "changed"), (moved, "with another label or part"))
    for paths, what in kinds:
        if paths:
            count = "1 image" if len(paths) == 1 else f"{len(paths):,} images"
            texts.append(f"{count} {what} (first: {min(paths)})")
    return ", ".join(texts)


def first_difference(before: Sequence[str], now: Sequence[str], noun: str) -> str:
    """The first index at which two lists of names differ, and how long they are."""
    index = next((k for k, pair in enumerate(zip(before, now)) if pair[0] != pair[1]), min(len(before), len(now)))
    old, new = (f"'{names[index]}'" if index < len(names) else "absent" for names in (before, now))
    return f"{noun} {index} is {old} there and {new} now, of {len(before)} there and {len(now)} now"


def _by_path(images: Iterable[Image]) -> dict[str, list[Image]]:
    by_path: dict[str, list[Image]] = {}
    for image in images:
        by_path.setdefault(image.path, []).append(image)
    return by_path


def described(facts: Mapping[str, Any]) -> str:
    """`32 test images 1a2b3c4d` of the data in a record, or "data not recorded"."""
    if not facts:
        return NOT_RECORDED
    return f"{facts['counts'].get('test', 0):,} test images {facts['test'][:8]}"
