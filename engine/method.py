"""What a method says of itself: attributes of its class, with the values that most have."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from yacs.config import CfgNode

from dassl_clip.results.errors import UserError

from .unused import Overridden

Limit = tuple[Callable[[Any], bool], str]
"""Whether a value is within it, and the words for what is."""


def trainer_node(cfg: CfgNode, name: str, **defaults: object) -> None:
    """Add the node `TRAINER.<name>` with `PREC` and these defaults; keys that are there already stay as they are."""
    node = cfg.TRAINER.setdefault(name, CfgNode())
    for key, value in {"PREC": "fp32", **defaults}.items():
        node.setdefault(key, value)


def at_least(least: float) -> Limit:
    """The limit of numbers that are not below `least`."""
    return (lambda value: least <= value < math.inf), f"a number of at least {least:g}"


def one_of(values: Collection[Any]) -> Limit:
    """The limit of a setting with named values."""
    return (lambda value: value in values), f"one of {', '.join(map(str, values))}"


ABOVE_ZERO: Limit = (lambda value: 0 < value < math.inf), "a number above 0"


def check_limits(limits: Mapping[str, Limit], cfg: CfgNode, name: str) -> None:
    """Refuse settings of the node `TRAINER.<name>` outside their limits.

    Raises:
        UserError: The key, its value and what is expected.
    """
    node = cfg.TRAINER[name]
    for key, (holds, expected) in limits.items():
        value = node.get(key)  # not `node[key]`: a check alone is no use of a key; and a subclass may have none
        if key in node and not holds(value):
            raise UserError(f"TRAINER.{name}.{key} is {value!r}; expected {expected}")


class MethodFacts:
    """Class attributes that tell what a method learns from, refines, and is tested by."""

    trains_on_labels = True  # False: no label decides anything that is learned
    reads_rows = True  # images that are rows of a parquet or arrow file, which Dassl's own loader does not open
    class_specific = False  # True: the learned parts hold an entry for each class and fit these classes alone
    repairs: str = ""  # what the method can repair of a frozen CLIP, a key of `results.diagnosis.REPAIRS`
    settings: Mapping[str, Any] = {}  # keys of its node and their defaults
    limits: Mapping[str, Limit] = {}  # of its node: what a setting has to be
    aliases: tuple[str, ...] = ()  # other names that a command line may give it; not inherited
    has_epochs = True  # False: `fit` solves the problem anew; there is no optimiser, and no epoch is resumed
    refines = False  # True: it refines the finished run that `FROM` of its node names
    listed_last = False  # True: where all methods are listed, it comes last
    listed = True  # False: it is not among all methods where these are listed; it is run by its name
    listed_usually = True  # False: it is listed among all methods of tasks without labels and of scenarios alone
    listed_refining = False  # True: where all methods are listed, every other one is listed refined by it too
    is_reference = False  # True: the method that others are compared with
    extra_tests: tuple[str, ...] = ()  # further tests that it can take: of forms, probe and attacks (`extra_tests.py`)
    fixed_in_record: Mapping[str, str] = {}  # key of its node -> the record's key that fixes it once a run is finished
    unused_keys: tuple[str, ...] = ()  # keys, or nodes, of the toolbox that the method does not read
    used_keys: tuple[str, ...] = ()  # the exceptions among them
    undecisive: tuple[str, ...] = ()  # settings in words or switches that do not decide which images or labels it reads
    unread_parts: tuple[str, ...] = ()  # beginnings of the names of learned parts that no score passes through
    cached_splits: tuple[str, ...] = ()  # splits beside the tested one whose features are cached for figures
    image_features_change = False  # True: its image tower is not CLIP's own, so no classifier serves CLIP's features
    caches_first_view = False  # a step takes what it needs of the first training view from `cached_view`
    short: Mapping[str, Any] = {}  # settings of its node for a run of seconds, as `dassl-clip check` makes many
    overridden: Overridden = {}  # settings of its node that another one may take the place of
    used_instead = ""  # what it reads in their place, for the warning to a user who changed one
