"""The configuration: one table of the keys that all runs share, and how a value gets into the yacs tree.

Dassl, the data sets and the trainers declare most keys. `KEYS` holds what the program itself knows of a key: its own
defaults, the values that are possible, and what the key means for a run's identity. Every other list of keys is read
from it. Every refusal names the key, where it came from, and what would be accepted.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dassl_clip.results.documents import read_yaml
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.protocols import flatten_config

from . import declared, registry
from .catalogue import existing_file
from .scenario_cases import TASKS, check_scenarios


@dataclass(frozen=True)
class Key:
    """What the program knows of a key, or of all keys of a group.

    Attributes:
        default: its default; None where Dassl, a data set or a trainer declares the key.
        least: least value.
        most: largest value.
        values: the values that are possible; empty: any.
        flag: flag of `train.py` that sets it, without dashes.
        computes: it decides what a run computes, and so is part of the run's identity.
        in_name: folder and record of a run name it apart, so the name of its configuration does not.
        by_task: a task sets it itself.
        same_images: two runs that differ in it do not test the same images under the same labels.
        of_machine: where things lie and what they run on: of the run that opens a finished one, not of that one.
        of_run: what a run learned is tested with the run's own value, on another data set too.
        comparable: the method that others are compared with follows them in it.
        epoch_loop: read by the epoch loop alone.
        of_model: the frozen model has a value of its own.
        names: a list of names, which may look like numbers.
        texts: a text, or a list of texts.
        run_folder: names a run's folder, wherever the folder above all runs lies.
        bytes_count: names a folder of which every file counts, with its content.
        sizes_count: names a folder of which every file counts, with its size.
        counts_if_set: is no part of a run's identity while it has its default, so runs from before the key stay equal.
        scenarios: is part of a run's identity under these values of SCENARIOS.TASK alone; empty: under all.
    """

    default: Any = None
    least: float | None = None
    most: float | None = None
    values: tuple[str, ...] = ()
    flag: str = ""
    computes: bool = True
    in_name: bool = False
    by_task: bool = False
    same_images: bool = False
    of_machine: bool = False
    of_run: bool = False
    comparable: bool = False
    epoch_loop: bool = False
    of_model: bool = False
    names: bool = False
    texts: bool = False
    run_folder: bool = False
    bytes_count: bool = False
    sizes_count: bool = False
    counts_if_set: bool = False
    scenarios: tuple[str, ...] = ()


_LARGEST_SEED = 2**32 - 1  # of numpy's generator
# A row without a last part stands for all keys of that group; `*` stands for any trainer, or for the rest of a name.
KEYS: dict[str, Key] = {
    "VERSION": Key(),
    "VERBOSE": Key(computes=False),
    "OUTPUT_DIR": Key(flag="output-dir", computes=False, of_machine=True, by_task=True),
    "RESUME": Key(flag="resume", computes=False, of_machine=True),
    "SEED": Key(flag="seed", most=_LARGEST_SEED, in_name=True, by_task=True),
    "USE_CUDA": Key(computes=False, of_machine=True, comparable=True),
    "RUN": Key(computes=False, of_machine=True),
    "RUN.TASK": Key("", flag="task"),
    "RUN.CONFIG": Key(""),  # the name of the trainer's file, with `+KEY=VALUE` for what was changed
    "RUN.SOURCE": Key(""),  # the data set that an evaluated run was trained on
    "RUN.DETERMINISTIC": Key(False, flag="deterministic"),
    "RUN.LOGGERS": Key(()),  # services that a run logs to
    "DATASET": Key(comparable=True),
    "DATASET.NAME": Key(in_name=True, by_task=True, same_images=True),
    "DATASET.ROOT": Key(flag="root", computes=False, of_machine=True, of_run=True),
    "DATASET.SOURCE_DOMAINS": Key(flag="source-domains", in_name=True, by_task=True, names=True),
    "DATASET.TARGET_DOMAINS": Key(flag="target-domains", in_name=True, by_task=True, names=True, same_images=True),
    "DATASET.NUM_SHOTS": Key(in_name=True, of_run=True),
    "DATASET.SUBSAMPLE_CLASSES": Key(in_name=True, same_images=True, of_run=True),
    "DATASET.PROTOCOL": Key(in_name=True, same_images=True),
    "DATASET.TEST_PART": Key("in", values=("in", "out", "all"), same_images=True, counts_if_set=True),
    "DATASET.TRIAL": Key(0, least=0, in_name=True, same_images=True, counts_if_set=True),
    "DATASET.TERRAINCOGNITA": Key("domainbed", values=("domainbed", "single"), same_images=True, counts_if_set=True),
    "DATASET.IMAGENETC_SEVERITY": Key(5, least=1, most=5, same_images=True, counts_if_set=True),
    "DATASET.SPLIT_SEED": Key(most=_LARGEST_SEED, same_images=True, of_run=True),
    "DATASET.TASKS": Key(computes=False),
    "DATASET.STYLES": Key((), counts_if_set=True),  # style words; () stands for the names of the domains
    "DATASET.STYLE_TEMPLATE": Key("a {} in {style} style.", counts_if_set=True),
    "DATASET.OWN_STYLES": Key("", counts_if_set=True),  # file; "": beside the weights, or the data set's own
    "INPUT": Key(comparable=True),
    "INPUT.TRANSFORMS": Key(flag="transforms"),
    "INPUT.SIZE": Key(of_model=True),
    "INPUT.INTERPOLATION": Key(of_model=True),
    "INPUT.PIXEL_MEAN": Key(of_model=True),
    "INPUT.PIXEL_STD": Key(of_model=True),
    "MODEL.BACKBONE": Key(of_machine=True, comparable=True),  # the same model, wherever its files lie now
    "MODEL.BACKBONE.NAME": Key(flag="backbone"),
    "MODEL.BACKBONE.WEIGHTS": Key("", flag="weights"),
    "MODEL.BACKBONE.TOKENIZER": Key("", bytes_count=True),  # a Hugging Face tokenizer, for towers that need one
    "MODEL.BACKBONE.COMPILE": Key(False),  # torch.compile of the frozen image tower
    "MODEL.HEAD.NAME": Key(flag="head"),
    "OPTIM": Key(epoch_loop=True),
    "OPTIM.LR": Key(least=0.0),
    "OPTIM.MAX_EPOCH": Key(least=0),
    "OPTIM.WEIGHT_DECAY": Key(least=0.0),
    "DATALOADER.NUM_WORKERS": Key(least=0, computes=False, of_machine=True, comparable=True),
    # skip: leave out, and list, what cannot be decoded
    "DATALOADER.ON_BAD_IMAGE": Key("error", values=("error", "skip"), computes=False),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(least=1, epoch_loop=True),
    "DATALOADER.TEST": Key(of_machine=True),
    "DATALOADER.TEST.BATCH_SIZE": Key(least=1),
    "TEST.FINAL_MODEL": Key(values=("last_step", "best_val")),
    "TEST.NO_TEST": Key(in_name=True),  # the record says that nothing was tested
    "TEST.SPLIT": Key(values=("test", "val"), comparable=True),
    # How images are drawn from the tested ones, see `engine/scenarios.py`; "" for the whole test set alone.
    "SCENARIOS.TASK": Key("", values=("", *TASKS), in_name=True, by_task=True, counts_if_set=True),
    "SCENARIOS.BATCHES": Key(
        ("64", "64:1-4", "64:2-10", "64:5-25", "256"), names=True, comparable=True, scenarios=("batch",)
    ),
    "SCENARIOS.DRAWS": Key(100, least=1, comparable=True, scenarios=("batch",)),  # of each entry of BATCHES
    "SCENARIOS.STREAMS": Key(("0.1", "0.01", "separate"), names=True, comparable=True, scenarios=("stream",)),
    "SCENARIOS.BLOCK": Key(64, least=2, comparable=True, scenarios=("stream",)),  # images of a block of a stream
    "SCENARIOS.ORDERS": Key(5, least=1, comparable=True, scenarios=("stream", "online")),
    "TRAIN.PRINT_FREQ": Key(least=1, computes=False),
    "TRAIN.CHECKPOINT_FREQ": Key(least=0, computes=False, epoch_loop=True),
    "TRAIN.CHECKPOINT_STEPS": Key(0, computes=False, epoch_loop=True),  # also save every so many steps of an epoch
    "TRAINER.NAME": Key(flag="trainer", in_name=True, by_task=True),
    "TRAINER.*.PREC": Key(comparable=True),
    "TRAINER.*.TEMPLATES": Key(comparable=True, texts=True),
    "TRAINER.*.CTX_INIT": Key(comparable=True),
    "TRAINER.*.TASKS": Key(computes=False),
    "TRAINER.*.FROM": Key(in_name=True, run_folder=True),
    "TRAINER.*.IMAGE_FOLDER": Key(sizes_count=True),
    "TRAINER.*.EVALUATE": Key(in_name=True),
    "TRAINER.*.NC_*": Key(comparable=True),
    "TRAINER.*.PROBE_*": Key(comparable=True),
    "TRAINER.*.ATTACK*": Key(comparable=True),
}
TOP_KEYS = tuple(key for key in KEYS if "." not in key and not any(other.startswith(f"{key}.") for other in KEYS))
FLAGS = {key: f"--{row.flag}" for key, row in KEYS.items() if row.flag}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_LARGEST = 2**63 - 1  # of any whole number: torch's own


def keys_with(fact: str) -> tuple[str, ...]:
    """The rows of `KEYS`, keys and groups, in which a fact is not as usual: `keys_with("epoch_loop")`."""
    usual = next(field.default for field in fields(Key) if field.name == fact)
    return tuple(key for key, row in KEYS.items() if getattr(row, fact) != usual)


@functools.cache
def _pattern(fact: str) -> re.Pattern[str]:
    rows = (re.escape(key).replace(r"\*", r"[^.]*") for key in keys_with(fact))
    return re.compile(rf"(?:{'|'.join(rows)})(?:\..*)?")


@functools.lru_cache(maxsize=1 << 16)
def is_a(key: str, fact: str) -> bool:
    """Whether a fact holds for a key, by its own row or by that of its group: `is_a("OPTIM.LR", "epoch_loop")`."""
    return _pattern(fact).fullmatch(key) is not None


def default_config() -> Any:
    """The toolbox's defaults with the keys of the program, of our data sets, and of every registered trainer."""
    return copied(merged_config(()))


def merged_config(files: Sequence[str]) -> Any:
    """The same with the values of some yaml files (`merge_file`); it is shared, so copy what is to be changed."""
    found = [(str(path), path.stat()) for path in map(existing_file, files)]
    read = tuple((path, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) for path, now in found)
    return _merged(registry.declaring(), read)


@functools.lru_cache(maxsize=64)  # planning a table resolves thousands of configurations with the same files
def _merged(declaring: tuple[Any, ...], files: tuple[tuple[Any, ...], ...]) -> Any:
    """The defaults with the keys that functions add and the values of files, by path and status."""
    cfg = _shared_config()
    for declare in declaring:
        declare(cfg)
    for path, *_ in files:
        merge_file(cfg, path)
    return cfg


def copied(node: Any) -> Any:
    """A copy of a tree of config nodes, faster than its own `clone`; lists are copied, all else is never changed."""
    new: Any = dict.__new__(type(node))
    new.__dict__.update(node.__dict__)
    new.update(node)
    for key, value in node.items():
        if isinstance(value, (dict, list)):
            new[key] = copied(value) if isinstance(value, dict) else copy.deepcopy(value)
    return new


def declared_config() -> Any:
    """What `default_config` returns for our own trainers alone, read from their sources, which imports no torch."""
    cfg = _shared_config()
    declared.add_keys(cfg)
    return cfg


def _shared_config() -> Any:
    """The toolbox's defaults with the keys of the program."""
    from yacs.config import CfgNode

    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.RUN, cfg.SCENARIOS = CfgNode(), CfgNode()
    for key, row in KEYS.items():
        if row.default is not None:
            *parents, name = key.split(".")
            functools.reduce(lambda node, part: node[part], parents, cfg).setdefault(name, row.default)
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
    if is_a(key, "names"):
        names = value if isinstance(value, (tuple, list)) else [] if value is None else [value]
        odd = next((name for name in names if isinstance(name, bool) or not isinstance(name, (str, int, float))), None)
        if odd is not None:
            what = "domains" if key.endswith("DOMAINS") else "entries"
            raise UserError(f"{origin}: {key} names {what}, but {odd!r} is none; put quotes around a name such as 'on'")
        return type(present)(map(str, names))
    if present is None or type(value) is type(present) or (value is None and not isinstance(present, (int, float))):
        return value
    if is_a(key, "texts") and isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value):
        return list(value)
    if is_a(key, "texts") and isinstance(value, str):
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


def check_values(cfg: Any) -> None:
    """Refuse values of shared keys that nothing can be done with.

    Raises:
        UserError: naming the key, its value and what is possible.
    """
    values = flatten_config(cfg)
    for key, value in values.items():
        if trouble := next(filter(None, map(_trouble, value if isinstance(value, list) else (value,))), ""):
            raise UserError(f"{key} is {value!r:.80}: {trouble}")
    for key, row in KEYS.items():
        if row.least is not None and values[key] < row.least:
            raise UserError(f"{key} is {values[key]}: it should be {row.least} or more")
        if row.most is not None and values.get(key, 0) > row.most:
            raise UserError(f"{key} is {values[key]}: it should be {row.most} or less; below 0 means unseeded")
        if row.values and values[key] not in row.values:
            hint = did_you_mean(values[key], row.values)
            hint = " Training images are not tested." if values[key] == "train" else hint
            known = ", ".join(filter(None, row.values))
            raise UserError(f"{key} is '{values[key]}'.{hint} Known: {known}.")
    check_scenarios(cfg)


def _trouble(value: Any) -> str:
    """Why no program can use a value, or an empty text."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        return "this is no text in UTF-8; rename the file or folder"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is expected"
    return "the number is too large" if isinstance(value, int) and abs(value) > _LARGEST else ""


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder that a flag names, if it is absent.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: the folder {folder} cannot be made ({error.strerror}); name one that can") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: the folder {folder} cannot be written to; name one that can")
