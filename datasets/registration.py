"""The doors of the room: Dassl's registry of data sets, and the keys of its configuration that the loaders read."""

import logging

from dassl.data.datasets import DATASET_REGISTRY

from .protocols import DASSL

logger = logging.getLogger(__name__)


def register(cls: type) -> type:
    """Register a data set under its class name, in place of one that the toolbox may have under that name."""
    name = cls.__name__
    if name in DATASET_REGISTRY.registered_names():
        other = DATASET_REGISTRY.get(name)
        if other.__module__ != cls.__module__:
            cls.replaces = f"{other.__module__}.{other.__qualname__}"
            logger.info("Data set %s: %s takes the place of %s", name, cls.__module__, cls.replaces)
    DATASET_REGISTRY.register(cls, force=True)
    return cls


def let_others_register(registry) -> None:
    """Let code of the user's own register a loader under a name of ours, without `force`, in place of ours.

    Programs such as CoOp register loaders called Caltech101, ImageNet, ... of their own; whoever imports them beside
    this package means theirs.

    Args:
        registry: Dassl's registry of data sets.
    """
    ordinary = registry._do_register

    def do_register(name: str, obj: object, force: bool = False) -> None:
        if name in registry.registered_names() and not force:
            ours = registry.get(name)
            if ours.__module__.startswith(f"{__package__}.") and obj.__module__ != ours.__module__:
                logger.info("Data set %s: %s takes the place of %s", name, obj.__module__, ours.__module__)
                force = True
        ordinary(name, obj, force=force)

    registry._do_register = do_register


def add_config(cfg) -> None:
    """Add the config keys that the loaders read, with their defaults; keys that are there already stay."""
    defaults = {
        "SUBSAMPLE_CLASSES": "all",  # all, base (first half of the class list) or new (the rest)
        "SPLIT_SEED": -1,  # seed of few-shot draw and hold-out; negative: SEED
        "SELECTION": "",  # stored few-shot selection to train on instead of drawing
        "TASKS": (),  # the tasks a script runs on this data set if none is named: lodo, fewshot
        "PROTOCOL": DASSL,  # dassl (the published splits), all-images or holdout
        "SPLIT_FILE": "",  # split file to read in place of the published one (Caltech101, Food101, ...)
        "IMAGENETV2": "matched-frequency",  # which of its three test sets: or threshold0.7, top-images
        "CLASSNAMES": "",  # file of class names for prompts; empty: the data set's own names
        "ON_UNREAD_CLASS": "error",  # or skip: leave out class folders of which no file is read (FolderClasses, ...)
        "MANIFEST": "",  # csv file of the data set Manifest; empty: manifest.csv in DATASET.ROOT
        "VLCS_TEST": "test",  # test of a held-out VLCS domain: test (Dassl's, 30 %) or full+test (all images)
    }
    for key, value in defaults.items():
        if key not in cfg.DATASET:
            cfg.DATASET[key] = value


def wants_unlabelled(cfg) -> bool:
    """Whether the trainer of a config takes unlabelled images of the targets beside the labelled ones."""
    from dassl.engine import TRAINER_REGISTRY, TrainerXU

    name = cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None
    return isinstance(trainer, type) and issubclass(trainer, TrainerXU)


def split_seed(cfg) -> int:
    """Seed of the few-shot draw and the hold-out: DATASET.SPLIT_SEED, or SEED if that is negative."""
    seed = cfg.DATASET.get("SPLIT_SEED", -1)
    return seed if seed >= 0 else cfg.SEED


let_others_register(DATASET_REGISTRY)
