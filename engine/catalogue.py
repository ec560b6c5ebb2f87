"""Which configuration files there are, and which one is meant by a name.

The files lie in the package `dassl_clip.configs`: `datasets/<data set>.yaml` and `trainers/<Trainer>/<name>.yaml`. A
path to a yaml file is accepted wherever a name is.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from dassl_clip import configs
from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, closest, did_you_mean, suggest
from dassl_clip.results.files import kind_of, no_file

from .declared import aliases

GENERAL_CONFIG = "vit_b16"
_ROOT = Path(configs.__file__).resolve().parent


def _plain(name: str) -> str:
    """A name without case, blanks, dashes and underscores: `Office-Home` and `office_home` agree."""
    return re.sub(r"[\s_-]+", "", name).lower()


def same_name(one: str, other: str) -> bool:
    """Whether two names agree but for case, blanks, dashes and underscores."""
    return _plain(one) == _plain(other)


def shown(path: Path) -> str:
    """A path relative to the working directory where it lies below it, otherwise absolute."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _pick(name: str, folder: Path, what: str) -> Path:
    stems = sorted(file.removesuffix(".yaml") for file in os.listdir(folder) if file.endswith(".yaml"))
    found = name if name in stems else next((stem for stem in stems if same_name(stem, name)), None)
    if found is not None:
        return folder / f"{found}.yaml"
    there = f"Known: {', '.join(stems)}" if stems else f"{folder} holds none"
    raise UserError(
        f"there is no {what} '{name}'.{did_you_mean(name, stems)} {there}; or give the path of a yaml file."
    )


def dataset_file(name: str) -> Path:
    """The yaml file of a data set, by name or path.

    Raises:
        UserError: there is none; the sentence lists the known ones.
    """
    if name.endswith((".yaml", ".yml")):
        return existing_file(name)
    return _pick(name, _ROOT / "datasets", "data set")


def names_dataset(name: str) -> bool:
    """Whether a word of the command line stands for a data set: the name of a configuration file, or a path of one."""
    return name.endswith((".yaml", ".yml")) or any(same_name(name, known) for known in dataset_names())


def dataset_names() -> list[str]:
    """Data sets that have a configuration file."""
    return sorted(path.stem for path in (_ROOT / "datasets").glob("*.yaml"))


@functools.cache
def trainer_names() -> list[str]:
    """Trainers that have configuration files."""
    return sorted(path.name for path in (_ROOT / "trainers").iterdir() if any(path.glob("*.yaml")))


def trainer_file(trainer: str, name: str, dataset: str) -> Path:
    """The yaml file of a trainer.

    Args:
        trainer: registry name; a user's own trainer, which has no files, has those of `configs/own_trainers`.
        name: name of a config or path of a yaml file; "": the data set's own if there is one, else `vit_b16`. A name
            that no file has stands for that variant of the default: `paper` for `icons_paper` on icons.
        dataset: stem of the data set's file.

    Raises:
        UserError: there is none; the sentence lists the known ones.
    """
    if name.endswith((".yaml", ".yml")):
        return existing_file(name)
    folder = _ROOT / "trainers" / trainer
    folder = folder if folder.is_dir() else _ROOT / "own_trainers"
    own = folder / f"{dataset}.yaml"
    default = own if own.is_file() else folder / f"{GENERAL_CONFIG}.yaml"
    variant = folder / f"{default.stem}_{name}.yaml"
    if name and variant.is_file() and not (folder / f"{name}.yaml").is_file():
        return variant
    return _pick(name or default.stem, folder, f"config of {trainer}")


def config_names(trainer: str) -> list[str]:
    """All configs of a trainer."""
    return sorted(path.stem for path in (_ROOT / "trainers" / trainer).glob("*.yaml"))


def trainer_configs(trainer: str, dataset: str) -> list[str]:
    """The default config of a trainer for a data set and its variants: `icons`, `icons_paper`, ..."""
    default = trainer_file(trainer, "", dataset)
    variants = sorted(path.stem for path in default.parent.glob(f"{default.stem}_*.yaml"))
    return [default.stem, *variants]


def match_trainer(name: str, known: list[str]) -> str:
    """The registry name that a name in any case, or another name of a trainer (its `aliases`), stands for.

    Raises:
        UserError: no such trainer.
    """
    for trainer in known:
        if any(same_name(name, other) for other in (trainer, *aliases(trainer))):
            return trainer
    raise UserError(
        f"there is no method '{name}'.{meant_trainer(name, known)} Known: {', '.join(known)}. To add one: "
        "docs/adding-a-trainer.md; a file of your own that registers it is loaded with --import FILE.py."
    )


def meant_trainer(name: str, known: list[str]) -> str:
    """A sentence with the known trainer that a wrong name may mean, or that it is a method which is not here."""
    for elsewhere in read_yaml(_ROOT / "methods_elsewhere.yaml"):
        if same_name(name, elsewhere):
            return f" {elsewhere} is published, but not among the methods here."
    names = {other: trainer for trainer in known for other in (trainer, *aliases(trainer))}
    return suggest(names[other] for other in closest(name, names))


def existing_file(name: str) -> Path:
    """A configuration file by its path.

    Raises:
        UserError: there is none; the sentence lists those beside it, or those of the project that are called so.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    beside = sorted(item.name for item in path.parent.glob("[!.]*.y*ml")) if path.parent.is_dir() else []
    alike = [file for file in sorted(_ROOT.rglob("*.yaml")) if same_name(file.stem, path.stem)]
    own = f"; of that name: {', '.join(str(file.relative_to(_ROOT)) for file in alike)}" if alike else ""
    known = f" {path.parent} holds: {', '.join(beside)}." if beside else ""
    if kind_of(path) != "nothing":
        raise UserError(f"{no_file(path)}; give the path of a yaml file")
    raise UserError(
        f"there is no config file {path}.{known}{did_you_mean(path.name, beside)} Give the path of a yaml file; the "
        f"project's own are under {_ROOT}{own}"
    )
