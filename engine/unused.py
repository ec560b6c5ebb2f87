"""A warning for settings that were changed and that a method, or a frozen model, ignores."""

import logging
from collections.abc import Callable, Iterator, Mapping

from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl_clip.clip.prompts import initial_words
from dassl_clip.clip.templates import WORDS
from dassl_clip.results.errors import UserError

from .config import keys_with

logger = logging.getLogger(__name__)

# What methods without an epoch loop leave unread: the optimiser, its schedule and the batches of the loop.
EPOCH_LOOP = keys_with("epoch_loop")
MODEL_INPUT = tuple(key.removeprefix("INPUT.") for key in keys_with("of_model"))


def changed_keys(cfg: CfgNode, nodes: tuple[str, ...], used: tuple[str, ...] = ()) -> dict[str, object]:
    """The keys at or below `nodes` that differ from the toolbox's defaults, with their values; `used` do not count."""
    default = dict(_leaves(get_cfg_default()))
    return {
        key: value
        for key, value in _leaves(cfg)
        if any(key == node or key.startswith(f"{node}.") for node in nodes)
        and key not in used
        and not _same(value, default.get(key, 0))
    }


def warn_of_unused(cfg: CfgNode, unused: tuple[str, ...], used: tuple[str, ...], instead: str) -> None:
    """Say, in one warning, which changed settings the trainer does not read, and what it reads instead."""
    changed = changed_keys(cfg, unused, used)
    if changed:
        listed = ", ".join(f"{key} {value}" for key, value in changed.items())
        logger.warning("%s ignores %s: %s", cfg.TRAINER.NAME, listed, instead)


# Setting of a trainer's node -> the setting that takes its place, and whether it does so in a node.
Overridden = Mapping[str, tuple[str, Callable[[CfgNode], bool]]]


def words_override(node: CfgNode) -> bool:
    """Whether the words of `CTX_INIT` decide the number of context tokens, and `N_CTX` says another one."""
    words = initial_words(node.CTX_INIT).split()
    return bool(words) and len(words) != node.N_CTX


def templates_override(node: CfgNode) -> bool:
    """Whether `TEMPLATES` is not the set that is made of the words of `CTX_INIT`."""
    return bool(node.TEMPLATES != WORDS)


def refuse_overridden(cfg: CfgNode, name: str, overridden: Overridden, declare: Callable[[CfgNode], None]) -> None:
    """Refuse settings that were changed although another setting takes their place: a row would be named after them.

    `declare` adds the trainer's settings with their defaults to a configuration.

    Raises:
        UserError: One of them differs from its default and has no effect.
    """
    default = get_cfg_default()
    declare(default)
    node, plain = cfg.TRAINER[name], default.TRAINER[name]
    for key, (other, holds) in overridden.items():
        if not _same(node[key], plain[key]) and holds(node):
            raise UserError(
                f"TRAINER.{name}.{key} {node[key]!r} has no effect beside {other} {node[other]!r}: leave {key} out, or "
                f"change TRAINER.{name}.{other}"
            )


def warn_of_input(cfg: CfgNode, used: CfgNode) -> None:
    """Say, in one warning, which changed settings of `INPUT` the frozen model's own (`used`) take the place of."""
    keys = changed_keys(cfg, tuple(f"INPUT.{key}" for key in MODEL_INPUT))
    others = [key for key in MODEL_INPUT if f"INPUT.{key}" in keys and not _same(cfg.INPUT[key], used.INPUT[key])]
    if others:
        listed = ", ".join(f"INPUT.{key} {cfg.INPUT[key]} (it takes {used.INPUT[key]})" for key in others)
        logger.warning("%s takes images of its own kind and ignores %s", cfg.MODEL.BACKBONE.NAME, listed)


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its value."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _same(one: object, other: object) -> bool:
    """Whether two values of a key mean the same; lists and tuples do, and so do numbers that differ in float32 only."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return one == other
