"""The settings of a method: their node and their limits."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from yacs.config import CfgNode

from dassl_clip.results.errors import UserError

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
