"""Images that are given as lists of paths or features, in the place of a data set: fitted, and scored.

`dassl-clip predict --method` and the classifiers of `from dassl_clip import ...` build a method's trainer here, by the
configuration of a run of the same settings, so both give a run's numbers. What is fitted is not tested.

Shapes (letters of docs/methods.md): `N` images, `C` classes, `E` joint embedding.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dassl_clip.clip.finite import check_features, check_rows
from dassl_clip.clip.names import ICONS
from dassl_clip.results import records
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import UNLABELLED

from . import catalogue, registry
from .data import seed_everything
from .evaluation import split_logits
from .overrides import Overrides, resolve_config

NAME = "GivenImages"
ICONS_STEM = "icons"  # of the files with settings for the embedded model


@dataclass(frozen=True)
class Item:
    """One image, with the attributes of Dassl's `Datum`; a name stands for the path where features are given."""

    impath: str
    label: int = UNLABELLED
    domain: int = 0
    classname: str = ""


@dataclass(frozen=True)
class GivenImages:
    """Lists of images and the names of their classes.

    Attributes:
        names: `C` class names in label order.
        train: Images to learn from; without labels also those that are scored.
        val: Validation images with labels; may be empty.
        features: `[N, E]` of the images whose paths are the keys of `rows`, or None.
        rows: Path of an image -> its row of `features`.
        on_disk: Whether features of the images may be cached.
    """

    names: Sequence[str]
    train: Sequence[Item]
    val: Sequence[Item] = ()
    features: Tensor | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    on_disk: bool = True

    @property
    def unlabelled(self) -> bool:
        """Whether the images have no labels."""
        return all(item.label == UNLABELLED for item in self.train)

    def described(self) -> str:
        """The protocol of the record."""
        labels = "without labels" if self.unlabelled else "with labels"
        val = f", {len(self.val)} validation images" if self.val else ""
        return f"{len(self.train)} images given {labels}{val}; {len(self.names)} classes"


def labelled(paths: Sequence[str], labels: Sequence[int] | None, names: Sequence[str]) -> list[Item]:
    """Items of paths `[N]` and labels `[N]`; without labels where those are None."""
    if labels is None:
        return [Item(path) for path in paths]
    return [Item(path, label, classname=names[label]) for path, label in zip(paths, labels)]


@contextlib.contextmanager
def stand_in(name: str, data: GivenImages) -> Iterator[None]:
    """Within this context, Dassl's registry gives a data set of these images and class names under a name."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

    class Images(DatasetBase):
        """The images, as training and as test images, which Dassl needs both."""

        stands_in = True  # these are not the run's own images, so they are not compared with its record
        unlabelled = data.unlabelled
        domains: list[str] = []
        classnames = list(data.names)
        lab2cname = dict(enumerate(data.names))
        num_classes = len(data.names)
        protocol = data.described()

        def __init__(self, cfg: Any) -> None:
            super().__init__(train_x=list(data.train), val=list(data.val) or None, test=list(data.train))

    Images.__name__ = Images.__qualname__ = name
    before = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    DATASET_REGISTRY.register(Images, force=True)
    try:
        yield
    finally:
        if before is None:
            DATASET_REGISTRY._obj_map.pop(name)
        else:
            DATASET_REGISTRY._obj_map[name] = before


def trainer_class(method: str) -> type[Any]:
    """The class of a method of this project's kind, by its name in any case.

    Raises:
        UserError: There is none.
    """
    from .trainer import CLIPTrainer

    registry.register()
    ours = [name for name in registry.trainer_names() if issubclass(registry.trainer_class(name), CLIPTrainer)]
    return registry.trainer_class(catalogue.match_trainer(method, ours))


def settings_file(method: str, config: str, backbone: str) -> str:
    """The yaml file of a method's settings: as `dassl-clip task` takes it; "" where the method has none."""
    if not config and method not in catalogue.trainer_names():
        return ""
    return str(catalogue.trainer_file(method, config, ICONS_STEM if backbone == ICONS else ""))


def resolve(
    method: str, backbone: str, values: Mapping[str, Any], *, config: str = "", origin: str = "the settings"
) -> Any:
    """The frozen configuration of a method on given images, which are not tested.

    Args:
        method: Registry name.
        backbone: As `MODEL.BACKBONE.NAME` takes it.
        values: Config key -> value, a plain Python value.
        config: Name or path of a file with settings; "": the method's own default for the backbone.
        origin: Where the values come from, for messages.

    Raises:
        UserError: A key, a value or a file that does not exist or does not fit.
    """
    fixed = {"DATASET.NAME": NAME, "TRAINER.NAME": method, "MODEL.BACKBONE.NAME": backbone, "TEST.NO_TEST": True}
    pairs = tuple((key, repr(value)) for key, value in {**fixed, **values}.items())
    with stand_in(NAME, GivenImages((), ())):
        return resolve_config(Overrides("", settings_file(method, config, backbone), pairs=pairs, origin=origin))


def fit(cfg: Any, data: GivenImages) -> tuple[Any, dict[str, Any]]:
    """The trainer of a configuration, trained on given images and ready to score, and the record of it.

    Raises:
        UserError: The method needs labels or images that are not given, or what the trainer refuses.
    """
    seed_everything(cfg)
    kind = registry.trainer_class(cfg.TRAINER.NAME)
    with stand_in(NAME, data), warnings.catch_warnings():
        if not kind.has_epochs:  # no step reads the batches that Dassl warns of
            warnings.simplefilter("ignore")
        trainer = kind(cfg)
    trainer.features.on_disk = data.on_disk
    with given_features(trainer, data.features, data.rows):
        if data.features is not None and trainer.has_epochs and trainer.fixed_view is None:
            raise UserError(
                f"{cfg.TRAINER.NAME} trains on views of the images themselves here, so features are not enough: give "
                "images"
            )
        trainer.train()
    trainer.set_model_mode("eval")
    record = records.read_record(cfg.OUTPUT_DIR)
    assert record is not None  # the trainer has just written it
    return trainer, record


@contextlib.contextmanager
def given_features(trainer: Any, features: Tensor | None, rows: Mapping[str, int]) -> Iterator[None]:
    """Within this context, features `[N, E]` take the place of images, which have names instead of paths.

    Raises:
        UserError: They are not `E` wide, or not finite, or the method reads more of an image.
    """
    from .transductive import TransductiveTrainer

    if features is not None:
        if not trainer.reads_features and not isinstance(trainer, TransductiveTrainer):
            raise UserError(f"{type(trainer).__name__} reads more of an image than its features: give images")
        if features.shape[1] != trainer.backbone.embed_dim:
            raise UserError(
                f"the features have {features.shape[1]} numbers each, but {trainer.backbone.name} gives "
                f"{trainer.backbone.embed_dim}: give features of this model's image tower"
            )
        check_features(features, "features", [f"row {number}" for number in range(len(features))])
    trainer.features.given = None if features is None else (features, rows)
    try:
        yield
    finally:
        trainer.features.given = None


@torch.no_grad()
def score(trainer: Any, data: GivenImages, items: Sequence[Item]) -> tuple[Tensor, list[str]]:
    """Logits `[R, C]`, float32 on the CPU, and the paths of the readable ones of some images, in their order.

    Methods that score images together are given these together.
    """
    trainer.set_model_mode("eval")
    trainer.before_test()
    with _looked_at(trainer, data):
        batches = list(split_logits(trainer, trainer.features.loader(items), "images"))
    paths = [path for _, _, names in batches for path in names]
    if not paths:
        raise UserError(f"none of the {len(items)} images can be read, the first is {items[0].impath}")
    logits = torch.cat([rows.float().cpu() for rows, _, _ in batches])
    check_rows(logits, "scores", paths)
    return logits, paths


def encode(trainer: Any, data: GivenImages, items: Sequence[Item]) -> tuple[Tensor, list[str]]:
    """Features `[R, E]` as the image tower gives them, and the paths of the readable ones of some images."""
    with _looked_at(trainer, data):
        images = trainer.features.cached(items)
    return images[images.readable], [items[number].impath for number in images.readable.tolist()]


@contextlib.contextmanager
def _looked_at(trainer: Any, data: GivenImages) -> Iterator[None]:
    """Within this context the trainer's feature store sees the given images as they are now."""
    store, before = trainer.features, trainer.features.on_disk
    store.look_again()
    store.on_disk = data.on_disk
    try:
        with given_features(trainer, data.features, data.rows):
            yield
    finally:
        store.on_disk = before
