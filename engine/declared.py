"""What trainers and data sets there are, and which keys they declare, read from the sources and not imported.

Importing a trainer imports torch, which takes seconds. With this a mistyped name or key is refused before that
(`overrides.py`). The registries have the last word; `tests/engine/test_declared.py` compares with them.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where each registry's classes are, ours and the toolbox's, and the decorators that register them.
_FOLDERS = {
    "TRAINER": ("dassl_clip.trainers", "dassl/engine"),
    "DATASET": ("dassl_clip.datasets", "dassl/data/datasets"),
}
_REGISTERED = {
    "TRAINER": re.compile(r"^@TRAINER_REGISTRY\.register\(\)\nclass (\w+)", re.MULTILINE),
    "DATASET": re.compile(r"^@(?:DATASET_REGISTRY\.register\(\)|register)\nclass (\w+)", re.MULTILINE),
}
_DECLARING = ("dassl_clip.trainers", "dassl_clip.engine", "dassl_clip.datasets/options.py")
_DECLARES = re.compile(
    r"^@TRAINER_REGISTRY|^class \w+Trainer\(|^\w*(?:KEYS|SETTINGS|DEFAULTS)\b", re.MULTILINE
)  # other modules are not parsed


@functools.cache
def registered_names(registry: str) -> list[str]:
    """Names in the registry TRAINER or DATASET once all that is ours and the toolbox's is imported."""
    folders = _FOLDERS[registry]
    return sorted({name for path in folders for text in _texts(path) for name in _REGISTERED[registry].findall(text)})


@functools.cache
def trainer_names() -> list[str]:
    """Our own trainers."""
    return _own_names("TRAINER")


def dataset_names() -> list[str]:
    """Our own data sets."""
    return _own_names("DATASET")


def _own_names(registry: str) -> list[str]:
    return sorted(name for text in _texts(_FOLDERS[registry][0]) for name in _REGISTERED[registry].findall(text))


@functools.cache
def _aliases() -> dict[str, tuple[str, ...]]:
    naming = [ast.parse(text) for text in _texts(_FOLDERS["TRAINER"][0]) if "    aliases = " in text]
    classes = [node for tree in naming for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        node.name: ast.literal_eval(value)
        for node in classes
        for name, value in _assignments(node.body)
        if name == "aliases"
    }


def aliases(trainer: str) -> tuple[str, ...]:
    """Other names of one of our trainers; those of a base class are the base's alone."""
    return _aliases().get(trainer, ())


def trainer_fact(trainer: str, name: str) -> Any:
    """A class attribute of one of our trainers, its own or an inherited one; None where its value is computed."""
    return _attribute(trainer, name)


def add_keys(cfg: Any) -> None:
    """Add to the toolbox's tree the keys that our data sets and trainers declare.

    None stands for a default that is computed, and a node with keys that are computed takes any key.
    """
    from yacs.config import CfgNode

    constants = _definitions()[1]
    cfg.DATASET.update({key: value for key, value in _value(constants["DEFAULTS"]).items() if key not in cfg.DATASET})
    for trainer in trainer_names():
        settings = _attribute(trainer, "settings")
        keys = {"PREC": "fp32", **(settings if isinstance(settings, dict) else {"": True})}
        keys |= _value(constants["EXTRA_TEST_SETTINGS"]) if _attribute(trainer, "extra_tests") else {}
        takes_any = keys.pop("", False)
        cfg.TRAINER[trainer.upper()] = CfgNode(keys, new_allowed=takes_any)


def _texts(path: str) -> Iterator[str]:
    """The sources of a package, or of a folder or file below it: `dassl_clip.engine/trainer.py`."""
    package, _, below = path.partition("/")
    spec = importlib.util.find_spec(package)
    folder = Path(next(iter((spec and spec.submodule_search_locations) or ()), "/nowhere"), below)
    for file in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
        yield file.read_text(encoding="utf-8")


@functools.cache
def _definitions() -> tuple[dict[str, ast.ClassDef], dict[str, ast.expr]]:
    """Classes, and values of constants, at the top of the modules that declare keys, by name."""
    trees = [ast.parse(text) for path in _DECLARING for text in _texts(path) if _DECLARES.search(text)]
    statements = [node for tree in trees for node in tree.body]
    classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
    return classes, dict(_assignments(statements))


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target), node.value


def _attribute(class_name: str, name: str) -> Any:
    node = _definitions()[0].get(class_name)
    if node is None:
        return None
    own = dict(_assignments(node.body))
    if name in own:
        return _value(own[name])
    return next((value for base in node.bases if (value := _attribute(ast.unparse(base), name)) is not None), None)


def _value(node: ast.expr) -> Any:
    """The value of an expression, None if it is computed; of a dict with keys that are computed, the key "" is True."""
    if isinstance(node, ast.Dict):
        values: dict[str, Any] = {}
        for key, value in zip(node.keys, node.values):
            found = _value(value)
            values |= (found if isinstance(found, dict) else {"": True}) if key is None else {_value(key): found}
        return values
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts = [_value(part) for part in (node.left, node.right)]
        return functools.reduce(lambda one, two: one | two, (p if isinstance(p, dict) else {"": True} for p in parts))
    if isinstance(node, ast.Name):
        return _value(_definitions()[1][node.id]) if node.id in _definitions()[1] else None
    if isinstance(node, ast.Attribute):
        return _attribute(ast.unparse(node.value), node.attr)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
