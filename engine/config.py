"""From words on the command line to one frozen yacs tree.

Precedence, low to high: the toolbox's defaults, the keys that our data sets and trainers add, the data set's file, the
trainer's file, flags, KEY VALUE pairs. Every refusal names the key, where it came from, and what would be accepted.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.files import no_file
from dassl_clip.results.records import identity, task_of

from .catalogue import existing_file
from .paths import add_folder
from .ranges import check_ranges

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)+")
_PLAIN_KEYS = ("OUTPUT_DIR", "RESUME", "SEED", "USE_CUDA", "VERBOSE", "VERSION")
# Keys that a run's folder or record names apart from its configuration.
_NAMED_APART = frozenset(
    {
        *("TRAINER.NAME", "SEED", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES"),
        *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
        "DATASET.PROTOCOL",
    }
)
_NAMED_APART_ENDS = (".EVALUATE", ".FROM")
_LISTS_OF_NAMES = ("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS")  # a name may be a number
_TEXT_OR_TEXTS = ".TEMPLATES"  # the name of a set of templates, or the templates themselves
_LONGEST_CHANGES = 120
AUTO = "auto"  # of --resume: the folder of the run itself
_IMPORTED: dict[str, Any] = {}
# flag of the command line -> key of the configuration
FLAG_KEYS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "task": "RUN.TASK",
}


def is_key(word: str) -> bool:
    """Whether a word of the command line is a key of the configuration: `OPTIM.LR`, `SEED`."""
    return word in _PLAIN_KEYS or _DOTTED_KEY.fullmatch(word) is not None


def split_pairs(words: Sequence[str], single_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags from KEY VALUE pairs, wherever the pairs stand.

    A key ends the list of a flag that takes several values, so `--target-domains a b OPTIM.LR 0.1` means what it says.

    Args:
        words: the command line.
        single_flags: flags that take exactly one value; that value is never read as a key.

    Returns:
        The words for the argument parser, and the pairs as a flat list.

    Raises:
        UserError: a key without a value.
    """
    flags: list[str] = []
    pairs: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            pairs += rest
            break
        if word in single_flags:
            flags += [word, *rest[:1]]
            del rest[:1]
        elif is_key(word):
            if not rest:
                raise UserError(f"the key {word} has no value: write {word} VALUE")
            pairs += [word, rest.pop(0)]
        else:
            flags.append(word)
    if len(pairs) % 2:
        raise UserError(f"KEY VALUE pairs expected, but {' '.join(pairs)} has an odd number of words")
    return flags, pairs


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


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"--import: {no_file(path)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    undo = add_folder(path.parent)  # for the modules beside it
    try:
        with _failing(str(path)):
            spec.loader.exec_module(module)
    finally:
        undo()
    return module


def _import_module(name: str) -> Any:
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
    """Within this context an error of a user's file names its place there."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
        file = (error.filename if isinstance(error, SyntaxError) else frames[-1].filename) or name
        raise UserError(
            f"--import: {name} cannot be imported: {type(error).__name__}: {error} (line {line} of {file}); --debug "
            "shows the traceback"
        ) from error


def default_config() -> Any:
    """The toolbox's defaults with the keys of our data sets, of every registered trainer, and of the command line."""
    from yacs.config import CfgNode

    from dassl.config import get_cfg_default
    from dassl_clip import datasets, trainers

    cfg = get_cfg_default()
    cfg.RUN = CfgNode({"TASK": "", "CONFIG": "", "SOURCE": "", "DETERMINISTIC": False})
    datasets.add_config(cfg)
    trainers.add_config(cfg)
    for module in _IMPORTED.values():
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)
    return cfg


def resolve_config(args: argparse.Namespace, pairs: Sequence[str]) -> Any:
    """The frozen configuration that a command line of `train.py` asks for.

    Args:
        args: flags as parsed by `commands.train`; a flag that was not given is None.
        pairs: KEY VALUE pairs, flat.

    Raises:
        UserError: a file, key, value, trainer or data set that does not exist or does not fit.
    """
    from dassl.config import clean_cfg

    for name in args.imports or ():
        import_user_code(name)
    cfg = default_config()
    for file in (args.dataset_config_file, args.config_file):
        if file:
            merge_file(cfg, file)
    plain = cfg.clone()
    if args.deterministic:
        cfg.RUN.DETERMINISTIC = True
    if args.resume == AUTO:
        args.resume = None
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag)
        if value is not None:
            set_key(cfg, key, tuple(value) if isinstance(value, list) else value, f"--{flag.replace('_', '-')}")
    for key, text in zip(pairs[::2], pairs[1::2]):
        set_key(cfg, key, decode(text), "the command line")
    _check_registered(cfg)
    check_ranges(cfg)
    plain.TRAINER.NAME = cfg.TRAINER.NAME
    cfg.RUN.CONFIG = cfg.RUN.CONFIG or (Path(args.config_file).stem if args.config_file else "") + changes(plain, cfg)
    cfg.RUN.TASK = cfg.RUN.TASK or task_of(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
    clean_cfg(cfg, cfg.TRAINER.NAME)
    cfg.freeze()
    return cfg


def merge_file(cfg: Any, file: str) -> None:
    """Merge a yaml file into the tree, key by key.

    Raises:
        UserError: the file is missing or is no yaml mapping, or a key or value does not fit.
    """
    path = existing_file(file)
    if path.suffix == ".py":
        raise UserError(f"{path}: a config file is yaml text; python files, which could do anything, are not read")
    try:
        tree = read_yaml(path) or {}
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold KEY: VALUE lines, but holds a {type(tree).__name__}")
    _merge_tree(cfg, tree, "", str(path))


def _merge_tree(cfg: Any, tree: dict[str, Any], prefix: str, origin: str) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            _find(cfg, key, origin)
            _merge_tree(cfg, value, f"{key}.", origin)
        else:
            set_key(cfg, key, decode(value) if isinstance(value, str) else value, origin)


def set_key(cfg: Any, key: str, value: Any, origin: str) -> None:
    """Set one existing key to a value of its type.

    Raises:
        UserError: there is no such key, or the value has another type.
    """
    node, name = _find(cfg, key, origin)
    if name not in node:  # only a node that takes new keys gets here
        node[name] = value
        return
    present = node[name]
    if isinstance(present, dict):
        raise UserError(f"{origin}: {key} is a group of keys ({', '.join(present)}), not one that takes a value")
    node[name] = coerce(value, present, key, origin)


def _find(cfg: Any, key: str, origin: str) -> tuple[Any, str]:
    """The node that holds a key, and the last part of the key."""
    *parents, name = key.split(".")
    node = cfg
    for part in parents:
        node = node.get(part)
        if not isinstance(node, dict):
            raise UserError(_unknown(cfg, key, origin))
    if name not in node and not node.is_new_allowed():
        raise UserError(_unknown(cfg, key, origin))
    return node, name


def _unknown(cfg: Any, key: str, origin: str) -> str:
    known = known_keys(cfg)
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]  # only the group is wrong
    hint = f" Did you mean {' or '.join(repr(name) for name in same[:3])}?" if same else ""
    groups = {name.rpartition(".")[0] for name in known} - {""}
    hint = hint or did_you_mean(key, [*known, *groups])
    node = key.split(".")[0]
    siblings = [name for name in known if name.startswith(f"{node}.")]
    there = f" Keys of {node}: {', '.join(siblings[:40])}." if siblings and not hint else ""
    return f"{origin}: there is no config key '{key}'.{hint}{there}"


def known_keys(cfg: Any, prefix: str = "") -> list[str]:
    """Every leaf of the tree as a dotted key."""
    keys: list[str] = []
    for name, value in cfg.items():
        keys += known_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return keys


def decode(text: Any) -> Any:
    """The Python value that a text stands for, as yacs reads it: `0.1`, `True`, `('a', 'b')`, otherwise the text."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def coerce(value: Any, present: Any, key: str, origin: str) -> Any:
    """A value as the type of the one it replaces, where no information is lost."""
    if key in _LISTS_OF_NAMES:
        names = value if isinstance(value, (tuple, list)) else [] if value is None else [value]
        odd = next((name for name in names if isinstance(name, bool) or not isinstance(name, (str, int, float))), None)
        if odd is not None:
            raise UserError(
                f"{origin}: {key} names domains, but {odd!r} is none; put quotes around a name such as 'on'"
            )
        return type(present)(map(str, names))
    if present is None or type(value) is type(present) or (value is None and not isinstance(present, (int, float))):
        return value
    if key.endswith(_TEXT_OR_TEXTS) and isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value):
        return list(value)
    if key.endswith(_TEXT_OR_TEXTS) and isinstance(value, str):
        return value
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(present, (tuple, list)):
        if isinstance(value, (tuple, list)):
            return type(present)(value)
        if isinstance(value, str) or len(present) < 2:
            return type(present)([value])
    if isinstance(present, str) and isinstance(value, (int, float)):
        return str(value)
    expected = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}
    kind = expected.get(type(present).__name__, f"a {type(present).__name__} such as ('a', 'b')")
    raise UserError(f"{origin}: {key} takes {kind} (now {present!r}), but {value!r} was given")


def _check_registered(cfg: Any) -> None:
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    for what, flag, key, registry in (
        ("trainer", "--trainer NAME", cfg.TRAINER.NAME, TRAINER_REGISTRY),
        ("data set", "DATASET.NAME in --dataset-config-file FILE", cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        known = sorted(registry.registered_names())
        if not key:
            raise UserError(f"no {what} was named: give {flag}. Known: {', '.join(known)}.")
        if key not in known:
            raise UserError(
                f"there is no {what} '{key}'.{did_you_mean(key, known)} Known: {', '.join(known)}. "
                "A file of your own that registers it is loaded with --import FILE.py."
            )


def changes(plain: Any, asked: Any) -> str:
    """`+KEY=VALUE` for each key in which two configurations ask for different computations, safe in a file name.

    Keys of the trainer's own node stand without it.
    """
    before, after = identity(plain), identity(asked)
    changed = {
        key: value
        for key, value in after.items()
        if before.get(key) != value and key not in _NAMED_APART and not key.endswith(_NAMED_APART_ENDS)
    }
    own = f"TRAINER.{asked.TRAINER.NAME.upper()}."
    text = "".join(f"+{key.removeprefix(own)}={_safe(value)}" for key, value in sorted(changed.items()))
    if len(text) <= _LONGEST_CHANGES:
        return text
    exact = "".join(f"+{key}={value}" for key, value in sorted(changed.items()))
    return f"{text[: _LONGEST_CHANGES - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _safe(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"[^A-Za-z0-9.,_-]", "_", text)
