"""Dassl's registries of data sets and trainers, filled by name: all the rest asks the registries what there is."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import printable
from dassl_clip.results.files import no_file

from .paths import add_folder

PACKAGES = ("dassl_clip.datasets", "dassl_clip.trainers")  # importing them registers what they hold
_IMPORTED: dict[str, ModuleType] = {}
# How Dassl's registries, the original's and the toolbox's, refuse a name that is taken.
_TAKEN = re.compile(r'An object named "(?P<name>.+?)" was already registered in "(?P<registry>.+?)" registry')
_KINDS = {"DATASET": "data set", "TRAINER": "trainer"}


def register() -> None:
    """Fill the registries with what this project brings, and let log lines reach the console."""
    for name in PACKAGES:
        importlib.import_module(name)
    if logging.root.manager.disable:  # importing upstream Dassl silences every logger of the process
        logging.disable(logging.NOTSET)
    for name in ("dassl_clip", "dassl"):
        log = logging.getLogger(name)
        if not any(isinstance(handler, _ConsoleHandler) for handler in log.handlers):
            log.addHandler(_ConsoleHandler())
            log.setLevel(logging.INFO)


class _ConsoleHandler(logging.Handler):
    """Prints to whatever `sys.stdout` is at the moment, so that lines reach the console and the run's log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        print(f"{level}{printable(record.getMessage())}", flush=True)


def is_filled() -> bool:
    """Whether the registries hold what this project brings, so that asking them costs nothing."""
    return all(name in sys.modules for name in PACKAGES)


def trainer_names() -> list[str]:
    """Every registered trainer, this project's, the toolbox's and the user's."""
    from dassl.engine import TRAINER_REGISTRY

    return sorted(TRAINER_REGISTRY.registered_names())


def dataset_names() -> list[str]:
    """Every registered data set."""
    from dassl.data.datasets import DATASET_REGISTRY

    return sorted(DATASET_REGISTRY.registered_names())


def trainer_class(name: str) -> type[Any]:
    """The class of a registered trainer; `object` where there is none of that name."""
    from dassl.engine import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else object


def dataset_class(name: str) -> type:
    """The class of a registered data set; `object` where there is none of that name."""
    from dassl.data.datasets import DATASET_REGISTRY

    return DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else object


def declaring() -> tuple[Any, ...]:
    """What declares keys: the data sets, every registered trainer that has some, and the user's modules."""
    ours = (*map(importlib.import_module, PACKAGES), *map(trainer_class, trainer_names()))
    return (*(each.add_config for each in ours if hasattr(each, "add_config")),
            *(each.extend_cfg for each in _IMPORTED.values() if hasattr(each, "extend_cfg")))  # fmt: skip


def import_user_code(name: str) -> None:
    """Import, once, a module or a .py file that registers trainers or data sets when imported.

    If it has a function `extend_cfg(cfg)`, as the train.py of Dassl's plugins does, that adds its keys from then on.

    Raises:
        UserError: there is no such file or module.
    """
    path = Path(name).expanduser()
    is_file = name.endswith(".py") or path.is_file()
    key = str(path.resolve()) if is_file else name
    if key not in _IMPORTED:
        _IMPORTED[key] = _import_file(path.resolve()) if is_file else _import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"--import: {no_file(path)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import: {path} is no Python file: its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    undo = add_folder(path.parent)  # for the modules beside it
    try:
        with _failing(str(path)):
            spec.loader.exec_module(module)
    finally:
        undo()
    return module


def _import_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        add_folder(Path.cwd())
    with _failing(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or (name != error.name and not name.startswith(f"{error.name}.")):
                raise
            raise UserError(
                f"--import: there is no module '{name}' (looked in {Path.cwd()} and the installed packages); "
                "give a module name or a .py file"
            ) from error


@contextlib.contextmanager
def _failing(name: str) -> Iterator[None]:
    """Within this context an error of a user's file names its line there."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, KeyError) and (taken := _TAKEN.search(str(error))):
            raise UserError(f"--import: {name} {_taken_name(taken['name'], taken['registry'], frames)}") from error
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
        file = (error.filename if isinstance(error, SyntaxError) else frames[-1].filename) or name
        raise UserError(
            f"--import: {name} cannot be imported: {type(error).__name__}: {error} (line {line} of {file}); --debug "
            "shows the traceback"
        ) from error


def _taken_name(name: str, registry: str, frames: traceback.StackSummary) -> str:
    """A phrase on a name of a user's file that Dassl's registry has already: who has it, and what to do.

    `frames` lead from the user's file to the registry's.
    """
    from dassl.utils import Registry

    find = {"DATASET": dataset_class, "TRAINER": trainer_class}.get(registry)
    owner: object = find(name) if find else object
    holder = "something else"
    if isinstance(owner, type) and owner is not object:
        holder = f"{owner.__module__} ({getattr(sys.modules.get(owner.__module__), '__file__', 'no file')})"
    own = inspect.getsourcefile(Registry)
    line = next((frame for frame in reversed(frames) if frame.filename != own), frames[-1])
    return (
        f"registers a {_KINDS.get(registry, registry.lower())} {name!r} (line {line.lineno} of {line.filename}), but "
        f"{holder} has that name: rename the class, or register it with {registry}_REGISTRY.register(force=True), "
        "which puts it in that one's place"
    )
