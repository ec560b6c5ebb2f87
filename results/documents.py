"""YAML documents of other people's making: plain values only, and no more of them than a document needs.

YAML is read by the safe loader, which makes no objects. Aliases may share values, but a document whose aliases stand
for a vast number of values ("a billion laughs") or that holds itself is refused, as is one that is nested without end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .files import check_regular

MOST_BYTES = 4 << 20  # of a YAML document, which is read slowly
MOST_VALUES = 100_000  # of a YAML document, with every alias written out
DEEPEST = 40
CONFIG_NAME = "config.yaml"  # the resolved configuration in a run's folder
_HALF = re.compile("[\ud800-\udfff]")


def read_yaml(path: Path) -> Any:
    """The values of a YAML file.

    Raises:
        UserError: It is no YAML text of plain values, or it is refused; the sentence names the file.
        OSError: It cannot be read.
    """
    return _read(path, parse_yaml, "yaml file")


def read_run_config(path: Path) -> dict[str, Any]:
    """The configuration that a run wrote into its folder.

    Raises:
        UserError: It is no YAML text, or none of a run's configuration; the sentence names the file.
        OSError: It cannot be read.
    """
    tree = read_yaml(path)
    groups = {name: tree.get(name) if isinstance(tree, dict) else None for name in ("TRAINER", "DATASET", "MODEL")}
    lacks = [name for name, group in groups.items() if not isinstance(group, dict) or not _named(name, group)]
    if lacks:
        raise UserError(
            f"{path} is not the configuration of a run: {lacks[0]} with a NAME is expected"
            if lacks[0] != "MODEL"
            else f"{path} is not the configuration of a run: MODEL with BACKBONE and its NAME is expected"
        )
    if not isinstance(tree.get("RUN", {}), dict):
        raise UserError(f"{path} is not the configuration of a run: RUN should be a group of keys")
    return dict(tree)


def _named(name: str, group: dict[str, Any]) -> bool:
    """Whether a group of a run's configuration names its trainer, its data set or its backbone."""
    inner = group.get("BACKBONE") if name == "MODEL" else group
    return isinstance(inner, dict) and isinstance(inner.get("NAME"), str)


def parse_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        UserError: It is no YAML text of plain values, too long, too deep, or its aliases stand for too much.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"it has more than {MOST_BYTES:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, 0) > MOST_VALUES:
            raise UserError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(str(error)) from error


def _read(path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    check_regular(path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:  # PyYAML's too
        raise UserError(f"{path} is not a {kind}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a {kind} that can be read: it is nested too deeply") from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of values of a node with every alias written out."""
    if depth > DEEPEST:
        raise UserError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
    if isinstance(node, yaml.ScalarNode) and _HALF.search(node.value):
        raise UserError(f"{node.value!r} holds half a character")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in inner)
    return known[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a key that stands twice in a mapping: the second value would replace the first without a word."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(f"the key {key.value!r} stands twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line


def read_config(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration that an earlier run wrote into its folder, or None."""
    try:
        return read_run_config(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return None
