"""YAML documents of other people's making: plain values only, and no more of them than a document needs.

YAML is read by the safe loader, which makes no objects. Aliases may share values, but a document whose aliases stand
for a vast number of values ("a billion laughs") or that holds itself is refused, as is one that is nested without end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .files import check_regular

MOST_BYTES = 4 << 20  # of a YAML document, which is read slowly
MOST_VALUES = 100_000  # of a YAML document, with every alias written out
DEEPEST = 40
CONFIG_NAME = "config.yaml"  # the resolved configuration in a run's folder
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_yaml(path: Path) -> Any:
    """The values of a YAML file.

    Raises:
        UserError: It is no YAML text of plain values, or it is refused; the message names the file.
        OSError: It cannot be read.
    """
    check_regular(path)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:  # PyYAML's too
        raise UserError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a yaml file that can be read: it is nested too deeply") from error


def read_run_config(path: Path) -> dict[str, Any]:
    """The configuration that a run wrote into its folder.

    Raises:
        UserError: It is no YAML text, or none of a run's configuration; the message names the file.
        OSError: It cannot be read.
    """
    tree = read_yaml(path)
    for name, inner in (("TRAINER", ""), ("DATASET", ""), ("MODEL", "BACKBONE")):
        group = tree.get(name) if isinstance(tree, dict) else None
        group = group.get(inner) if inner and isinstance(group, dict) else group
        if not isinstance(group, dict) or not isinstance(group.get("NAME"), str):
            expected = f"{name} with {inner} and its NAME" if inner else f"{name} with a NAME"
            raise UserError(f"{path} is not the configuration of a run: {expected} is expected")
    if not isinstance(tree.get("RUN", {}), dict):
        raise UserError(f"{path} is not the configuration of a run: RUN should be a group of keys")
    return dict(tree)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration that an earlier run wrote into its folder, or None."""
    try:
        return read_run_config(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return None


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
        if _values(node, {}, 0) > MOST_VALUES:
            raise UserError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(str(error)) from error


def _values(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of values of a node with every alias written out."""
    if depth > DEEPEST:
        raise UserError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
    if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
        raise UserError(f"{node.value!r} holds half a character")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    line = key.start_mark.line + 1
                    if key.value in lines:  # its second value would replace the first without a word
                        raise UserError(f"the key {key.value!r} stands twice, in lines {lines[key.value]} and {line}")
                    lines[key.value] = line
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_values(part, known, depth + 1) for part in inner)
    return known[id(node)]
