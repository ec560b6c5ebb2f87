"""The keys of Dassl's node DATASET that the loaders read, and what their values mean."""

from collections.abc import Sequence

from dassl_clip.results.errors import UserError, did_you_mean

DASSL, ALL_IMAGES, HOLDOUT, DOMAINBED = PROTOCOLS = ("dassl", "all-images", "holdout", "domainbed")


DEFAULTS = {
    "SUBSAMPLE_CLASSES": "all",  # all, base (first half of the class list) or new (the rest)
    "SPLIT_SEED": -1,  # seed of few-shot draw and hold-out; negative: SEED
    "SELECTION": "",  # stored few-shot selection to train on instead of drawing
    "TASKS": (),  # the tasks a script runs on this data set if none is named: lodo, fewshot
    "PROTOCOL": DASSL,  # dassl (the published splits), all-images, holdout or domainbed
    "TEST_PART": "in",  # of a target under domainbed: in (80 %, what DomainBed reports), out (20 %) or all
    "TRIAL": 0,  # number of DomainBed's split, its trial_seed
    "SPLIT_FILE": "",  # split file to read in place of the published one (Caltech101, Food101, ...)
    "IMAGENETV2": "matched-frequency",  # which of its three test sets: or threshold0.7, top-images
    "IMAGENETC_SEVERITY": 5,  # which folder of each corruption of ImageNetC is read, 1 to 5
    "CLASSNAMES": "",  # file of class names for prompts; empty: the data set's own names
    "ON_UNREAD_CLASS": "error",  # or skip: leave out class folders of which no file is read (FolderClasses, ...)
    "MANIFEST": "",  # csv file of the data set Manifest; empty: manifest.csv in DATASET.ROOT
    "TERRAINCOGNITA": "domainbed",  # an image of two classes: domainbed (counts in both), single (is left out)
    "VLCS_TEST": "test",  # test of a held-out VLCS domain: test (Dassl's, 30 %) or full+test (all images)
}


def add_config(cfg) -> None:
    """Add the config keys that the loaders read, with their defaults; keys that are there already stay."""
    for key, value in DEFAULTS.items():
        if key not in cfg.DATASET:
            cfg.DATASET[key] = value


def split_seed(cfg) -> int:
    """Seed of the few-shot draw and the hold-out: DATASET.SPLIT_SEED, or SEED if that is negative."""
    seed = cfg.DATASET.get("SPLIT_SEED", -1)
    return seed if seed >= 0 else cfg.SEED


def wants_unlabelled(cfg) -> bool:
    """Whether the trainer of a config takes unlabelled images of the targets beside the labelled ones."""
    from dassl.engine import TrainerXU

    trainer = _trainer(cfg)
    return isinstance(trainer, type) and issubclass(trainer, TrainerXU)


def reads_rows(cfg) -> bool:
    """Whether the trainer of a config reads images that are rows of a file; those of Dassl open the path of each."""
    trainer = _trainer(cfg)
    return trainer is None or getattr(trainer, "reads_rows", False)


def _trainer(cfg):
    from dassl.engine import TRAINER_REGISTRY

    name = cfg.TRAINER.NAME
    return TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None


def choice(option: str, value: str, known: Sequence[str]) -> str:
    """The value of an option of the node DATASET; a UserError if it is none of those that are known."""
    if value not in known:
        hint = did_you_mean(value, known, cutoff=0.5)
        raise UserError(f'DATASET.{option} is "{value}"; it must be one of {", ".join(known)}.{hint}')
    return value


def check_protocol(name: str, dataset: str, known: Sequence[str]) -> str:
    """The name of a protocol; a UserError if there is none of that name, or the data set does not have it."""
    if choice("PROTOCOL", name, PROTOCOLS) not in known:
        raise UserError(
            f"DATASET.PROTOCOL {name} does not go with {dataset}, whose parts are fixed; it has {', '.join(known)}"
        )
    return name
