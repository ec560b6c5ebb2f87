"""A small data set made of the icons, with knobs: labels, images, names, domains and sizes of its parts can be changed.

A world is written as `world.json` into a folder of its own, and `CheckWorld` is the Dassl data set that reads the file
under DATASET.ROOT. The pictures of all worlds lie in one pool, `pool/domain/class/picture.png`, so that worlds that
differ in labels or order share cached features. A test picture keeps its `name` in every world.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl_clip.embedded import ICONS_FOLDER

DATASET_NAME = "CheckWorld"
FILE = "world.json"
CLASSES = ("bag", "book", "car", "cup", "drinking glass", "truck")  # each has enough pictures in every style
SOURCES, TARGET, OTHER = ("emoji", "line"), "flat", "solid"
SIZES = {"train": 4, "val": 1, "test": 5}  # pictures of a class in a domain, as far as there are so many


@dataclass(frozen=True)
class Picture:
    """An image of a world.

    Attributes:
        name: what it is called in all worlds.
        path: its file.
        label: number of its class in this world.
        domain: its style.
    """

    name: str
    path: str
    label: int
    domain: str


@dataclass(frozen=True)
class World:
    """A small data set.

    Attributes:
        classes: class names in label order.
        sources: domains of `train` and `val`.
        targets: domains of `test` and `unlabelled`.
        train, val, test: pictures.
        unlabelled: pictures of the target for trainers that take such (`train_u`).
    """

    classes: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    test: tuple[Picture, ...]
    unlabelled: tuple[Picture, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the world into a folder, for DATASET.ROOT."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")
        return folder

    def labels(self) -> dict[str, int]:
        """The label of each test picture."""
        return {picture.name: picture.label for picture in self.test}

    def mapped(self, change: Callable[[Picture], Picture], *parts: str) -> World:
        """The same with every picture of some parts changed."""
        return replace(self, **{part: tuple(map(change, getattr(self, part))) for part in parts})

    def shuffled_labels(self, part: str, seed: int = 7) -> World:
        """The same with the labels of a part permuted at random among its pictures."""
        pictures = getattr(self, part)
        labels = [picture.label for picture in pictures]
        random.Random(seed).shuffle(labels)
        return replace(self, **{part: tuple(replace(p, label=label) for p, label in zip(pictures, labels))})

    def renumbered(self, order: tuple[int, ...]) -> World:
        """The same with the classes in another order: class `order[k]` of this world has the label `k`."""
        new = {old: label for label, old in enumerate(order)}
        changed = self.mapped(
            lambda picture: replace(picture, label=new[picture.label]), "train", "val", "test", "unlabelled"
        )
        return replace(changed, classes=tuple(self.classes[old] for old in order))

    def of_classes(self, labels: Iterable[int], *parts: str) -> World:
        """The same with pictures of these classes alone in some parts."""
        kept = set(labels)
        return replace(self, **{part: tuple(p for p in getattr(self, part) if p.label in kept) for part in parts})

    def two_classes(self) -> World:
        """The first two classes alone."""
        less = self.of_classes((0, 1), "train", "val", "test", "unlabelled")
        return replace(less, classes=self.classes[:2])


def copied(picture: Picture, folder: Path, file: str = "", **changes: Any) -> Picture:
    """A picture whose file is a copy in another folder, under its own file name or another one."""
    source = Path(picture.path)
    place = folder / picture.domain / source.parent.name / (file or source.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    return replace(picture, path=str(place), **changes)


@dataclass(frozen=True)
class Pool:
    """The pictures of every domain and part: `pictures[domain, part]`."""

    folder: Path
    pictures: dict[tuple[str, str], tuple[Picture, ...]]

    def world(self, sources: tuple[str, ...] = SOURCES, target: str = TARGET) -> World:
        """The world that trains on some domains and tests another one, or the same."""
        parts = {part: tuple(p for domain in sources for p in self.pictures[domain, part]) for part in ("train", "val")}
        return World(CLASSES, sources, (target,), parts["train"], parts["val"], self.pictures[target, "test"],
                     self.pictures[target, "train"])  # fmt: skip


def make_pool(folder: Path) -> Pool:
    """Copy the icons of a few classes into `folder/domain/class/`."""
    chosen: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    with (ICONS_FOLDER / "split.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = row["domain"], row["class"], row["split"]
            if row["class"] not in CLASSES or counts[key] == SIZES[row["split"]]:
                continue
            counts[key] += 1
            name = f"{row['domain']}/{row['class']}/{Path(row['path']).name}"
            picture = Picture(name, str(ICONS_FOLDER / row["path"]), CLASSES.index(row["class"]), row["domain"])
            chosen[row["domain"], row["split"]].append(copied(picture, folder))
    return Pool(folder, {key: tuple(pictures) for key, pictures in chosen.items()})


@DATASET_REGISTRY.register()
class CheckWorld(DatasetBase):
    """The world of `world.json` under DATASET.ROOT; class names and their number are those of the file."""

    def __init__(self, cfg: Any) -> None:
        self.dataset_dir = str(cfg.DATASET.ROOT)
        facts = json.loads((Path(self.dataset_dir) / FILE).read_text(encoding="utf-8"))
        self._names: list[str] = facts["classes"]
        self.protocol = f"{len(self._names)} classes of the icons, tested on {', '.join(facts['targets'])}"
        self.domains = sorted({*facts["sources"], *facts["targets"]})

        def datums(part: str, domains: list[str]) -> list[Datum]:
            numbers = {domain: number for number, domain in enumerate(domains)}
            return [
                Datum(p["path"], p["label"], numbers.get(p["domain"], 0), self._names[p["label"]]) for p in facts[part]
            ]

        sources, targets = facts["sources"], facts["targets"]
        super().__init__(
            train_x=datums("train", sources),
            train_u=datums("unlabelled", targets) if _takes_unlabelled(cfg.TRAINER.NAME) else None,
            val=datums("val", sources) or None,
            test=datums("test", targets),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each occurs in training."""
        return len(self._names)

    @property
    def classnames(self) -> list[str]:
        """Class names in label order."""
        return list(self._names)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return dict(enumerate(self._names))


def _takes_unlabelled(name: str) -> bool:
    from dassl.engine import TRAINER_REGISTRY, TrainerXU

    return issubclass(TRAINER_REGISTRY.get(name), TrainerXU)
