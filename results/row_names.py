"""Short names of rows, and what they leave out.

A configuration is named `vit_b16+OPTIM.LR=0.2+MODEL.BACKBONE.WEIGHTS=_a_path_x.safetensors`: the stem of a file, then
every key that was changed. A row's name has the stem and the last word of each key: `vit_b16, LR=0.2, weights 1a2b`.
The keys as they were given, and the file of the weights, stand in the legend below a table (`tables.legend`).
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping
from typing import Any

BACKBONE, WEIGHTS = "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.WEIGHTS"
LONGEST_VALUE = 16
LONGEST_CHANGES = 48
_CHANGE = re.compile(r"\+(?=[A-Za-z][\w.]*=)")
_CUT = re.compile(r"-[0-9a-f]{8}$")  # the end of a list of changes that was too long for a folder's name


def short_config(config: str, weights: str) -> str:
    """A configuration's name without whole keys, paths and long values; the backbone's name is the table's own.

    Args:
        config: the name; of a run that refines another one, both with ` + ` between them.
        weights: what stands for a file of weights.
    """
    stems, changes = [], dict[str, None]()
    for part in config.split(" + "):
        stem, *changed = _CHANGE.split(part)
        stems += [stem] if stem else []
        for key, _, value in (change.partition("=") for change in changed):
            if key == WEIGHTS:
                changes[weights] = None
            elif key != BACKBONE:
                fits = len(value) <= LONGEST_VALUE and "+" not in value
                name = key.rpartition(".")[2]
                changes[f"{name}={value}" if fits else f"{name} {_digest(value)}"] = None
    text = ", ".join(changes)
    if len(text) > LONGEST_CHANGES:
        text = f"{len(changes)} keys {_digest(config)}"
    return ", ".join(filter(None, (" + ".join(stems), text)))


def changed_keys(record: Mapping[str, Any]) -> dict[str, str]:
    """The keys that a run has changed of its configuration, with their values as its command has them."""
    if not record:
        return {}
    base = record.get("refines") or {}
    given = _given(str(record.get("command", "")))
    changed: dict[str, str] = {}
    for method, config in ((base.get("method", ""), base.get("config", "")), (record["method"], record["config"])):
        for change in _CHANGE.split(config)[1:]:
            key, _, value = change.partition("=")
            own = f"TRAINER.{method.upper()}.{key}"  # of keys of its own a name has the end alone
            key = own if own in given or "." not in key else key
            changed[key] = given.get(key) or value
        if _CUT.search(config):  # keys that the name has no place for
            changed |= {key: value for key, value in given.items() if key.startswith(("OPTIM.", "INPUT.", "TRAINER."))}
    return changed


def weights_file(record: Mapping[str, Any]) -> str:
    """The file of the backbone's weights, where a run was given one."""
    return changed_keys(record).get(WEIGHTS, "")


def _given(command: str) -> dict[str, str]:
    """The `KEY VALUE` pairs of a command, also where they were given as `KEY=VALUE`."""
    try:
        words = shlex.split(command)
    except ValueError:
        return {}
    pairs = {word: after for word, after in itertools.pairwise(words) if _is_key(word)}
    equal = (word.partition("=") for word in words)
    return pairs | {key: value for key, sign, value in equal if sign and _is_key(key)}


def _is_key(word: str) -> bool:
    return re.fullmatch(r"[A-Z]\w*(\.[A-Z]\w*)+", word) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
