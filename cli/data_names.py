"""Which loader is meant by a name, and the configuration to open it with."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip import configs
from dassl_clip.engine.catalogue import dataset_file
from dassl_clip.engine.config import decode, merge_file, set_key
from dassl_clip.results.errors import UserError, did_you_mean


def loaders() -> dict[str, type]:
    """The loaders of this project by registry name, in alphabetical order."""
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl_clip.datasets.common import ListedDataset

    logging.disable(logging.NOTSET)  # importing upstream Dassl silences every logger of the process
    found = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    ours = {name: loader for name, loader in found.items() if issubclass(loader, ListedDataset)}
    return dict(sorted(ours.items(), key=lambda item: item[0].casefold()))


def config_names() -> dict[str, str]:
    """Registry name -> stem of the data set's file in `configs/datasets`."""
    names = {}
    for path in sorted((Path(configs.__file__).resolve().parent / "datasets").glob("*.yaml")):
        match = re.search(r"NAME:\s*['\"]?(\w+)", path.read_text(encoding="utf-8"))
        if match:
            names.setdefault(match[1], path.stem)
    return names


def open_config(name: str, root: str, pairs: Sequence[str]) -> tuple[type, Any]:
    """The loader that a name stands for, and its configuration.

    Args:
        name: registry name, name of a config or of the data set's folder, or path of a yaml file.
        root: folder above the data sets, or the data set's own.
        pairs: KEY VALUE pairs, flat.

    Raises:
        UserError: there is no such data set, or a key does not fit.
    """
    from dassl.config import get_cfg_default
    from dassl_clip.datasets import add_config
    from dassl_clip.datasets.spec import load_spec
    from dassl_clip.datasets.verify import entries

    known, files = loaders(), config_names()
    cfg = get_cfg_default()
    add_config(cfg)
    plain = {_plain(text): key for key in known for text in (key, files.get(key, key))}
    for spec in map(load_spec, entries()):
        for folder in spec.folders:
            plain.setdefault(_plain(folder), spec.name)
    if name.endswith((".yaml", ".yml")):
        merge_file(cfg, str(dataset_file(name)))
        if cfg.DATASET.NAME not in known:
            raise UserError(f"{name} names the data set '{cfg.DATASET.NAME}'. Known: {', '.join(known)}.")
    elif _plain(name) in plain:
        cfg.DATASET.NAME = plain[_plain(name)]
        if cfg.DATASET.NAME in files:
            merge_file(cfg, str(dataset_file(files[cfg.DATASET.NAME])))
    else:
        raise UserError(f"there is no data set '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    for key, text in zip(pairs[::2], pairs[1::2]):
        set_key(cfg, key, decode(text), "the command line")
    if root:
        cfg.DATASET.ROOT = root
    return known[cfg.DATASET.NAME], cfg


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
