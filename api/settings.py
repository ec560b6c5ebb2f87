"""The keyword settings of a classifier, and the config keys that they stand for."""

from collections.abc import Mapping
from typing import Any

from dassl_clip.engine.config import default_config, known_keys
from dassl_clip.engine.fingerprint import identity
from dassl_clip.results.errors import UserError, did_you_mean

SHARED = {"workers": "DATALOADER.NUM_WORKERS", "test_batch_size": "DATALOADER.TEST.BATCH_SIZE"}
OF_EPOCHS = {  # of methods that have epochs
    "epochs": "OPTIM.MAX_EPOCH",
    "lr": "OPTIM.LR",
    "batch_size": "DATALOADER.TRAIN_X.BATCH_SIZE",
    "transforms": "INPUT.TRANSFORMS",
}


def keywords(kind: type[Any]) -> dict[str, str]:
    """Keyword -> config key of a method: its own `settings` in small letters, and those that methods share."""
    name = kind.__name__.upper()
    own = {key.lower(): f"TRAINER.{name}.{key}" for key in ("PREC", *kind.settings)}
    return {**SHARED, **(OF_EPOCHS if kind.has_epochs else {}), **own}


def config_values(kind: type[Any], settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Config key -> plain value of keyword settings; a config key in full is one too.

    Raises:
        UserError: There is no such setting.
    """
    known = keywords(kind)
    values = {}
    for word, value in settings.items():
        if word not in known and "." not in word:
            raise UserError(
                f"{owner} has no setting '{word}'.{did_you_mean(word, known)} Its settings: {', '.join(sorted(known))}"
            )
        values[known.get(word, word)] = plain(value)
    return values


def plain(value: Any) -> Any:
    """A number of numpy or torch, or a path, as Python's own."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def settings_between(kind: type[Any], before: Any, after: Any) -> dict[str, Any]:
    """The settings that lead from one configuration of a method to another."""
    words = {key: word for word, key in keywords(kind).items()}
    old, new = identity(before), identity(after)
    groups = (f"TRAINER.{kind.__name__.upper()}.", "OPTIM.", "INPUT.TRANSFORMS", "DATALOADER.TRAIN_X.BATCH_SIZE")
    groups += ("DATASET.STYLE", "DATASET.OWN_STYLES")
    known = set(known_keys(default_config()))
    changed = {key: value for key, value in new.items() if old.get(key) != value and key in known}
    return {words.get(key, key): plain(value) for key, value in changed.items() if key.startswith(groups)}
