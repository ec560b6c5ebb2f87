"""What a run asks for on top of the defaults, and the frozen yacs tree that it amounts to.

Precedence, low to high: the toolbox's defaults, the keys that our data sets and trainers add, the data set's file, the
trainer's file, what has a flag of its own, KEY VALUE pairs.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_clip.clip.names import check_name
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.protocols import task_of

from . import declared, registry
from .catalogue import meant_trainer
from .config import FLAGS, check_values, copied, declared_config, decode, is_a, merge_file, merged_config, set_key
from .fingerprint import identity

_LONGEST_CHANGES = 120
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Overrides:
    """What `train.py` is asked for.

    Attributes:
        dataset_file: the data set's yaml file, "" for none.
        trainer_file: the trainer's yaml file, "" for none.
        flags: key and value of what was given as a flag.
        pairs: KEY VALUE pairs; values are texts.
        imports: modules or files with trainers or data sets of the user's own.
        origin: where the pairs come from, for messages.
    """

    dataset_file: str = ""
    trainer_file: str = ""
    flags: tuple[tuple[str, Any], ...] = ()
    pairs: Pairs = ()
    imports: tuple[str, ...] = ()
    origin: str = "the command line"

    @property
    def files(self) -> list[str]:
        """The yaml files, in the order in which they are merged."""
        return [file for file in (self.dataset_file, self.trainer_file) if file]

    def flag_words(self) -> list[str]:
        """The flags as words of a command line."""
        words = {key: [FLAGS[key], *(map(str, value) if isinstance(value, tuple) else [str(value)])]
                 for key, value in self.flags}  # fmt: skip
        first = words.pop("TRAINER.NAME", [])
        first += ["--dataset-config-file", self.dataset_file] if self.dataset_file else []
        first += ["--config-file", self.trainer_file] if self.trainer_file else []
        first += words.pop("DATASET.ROOT", [])
        first += [word for name in self.imports for word in ("--import", name)]
        return first + [word for flag in words.values() for word in flag]


@functools.lru_cache(maxsize=4096)
def resolve_config(overrides: Overrides) -> Any:
    """The frozen configuration that some overrides ask for.

    Raises:
        UserError: a file, key, value, trainer or data set that does not exist or does not fit.
    """
    from dassl.config import clean_cfg

    refuse_mistakes(overrides)
    registry.register()  # before the user's code, which is the one to blame for a name that is taken
    for name in overrides.imports:
        registry.import_user_code(name)
    plain = merged_config(overrides.files)
    cfg = copied(plain)
    _apply(cfg, overrides, registry.trainer_names(), registry.dataset_names())
    clean_cfg(cfg, cfg.TRAINER.NAME)
    stem = Path(overrides.trainer_file).stem if overrides.trainer_file else ""
    cfg.RUN.CONFIG = cfg.RUN.CONFIG or stem + changes(plain, cfg)
    cfg.RUN.TASK = cfg.RUN.TASK or task_of(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
    cfg.freeze()
    return cfg


def refuse_mistakes(overrides: Overrides) -> None:
    """Find most mistakes before torch is imported; what the user's own code registers and declares is not known then.

    Raises:
        UserError: as `resolve_config`.
    """
    if not registry.is_filled() and not overrides.imports:
        cfg = declared_config()
        for file in overrides.files:
            merge_file(cfg, file)
        _apply(cfg, overrides, *map(declared.registered_names, ("TRAINER", "DATASET")))
        if cfg.MODEL.BACKBONE.NAME:
            check_name(cfg.MODEL.BACKBONE.NAME)


def _apply(cfg: Any, overrides: Overrides, trainers: list[str], datasets: list[str]) -> None:
    """Set what is asked for beside the files in a tree that has them, and check it."""
    for key, value in overrides.flags:
        set_key(cfg, key, value, FLAGS[key])
    for key, text in overrides.pairs:
        set_key(cfg, key, decode(text), overrides.origin)
    _check_registered(cfg, trainers, datasets)
    check_values(cfg)


def _check_registered(cfg: Any, trainers: list[str], datasets: list[str]) -> None:
    for what, flag, key, known in (
        ("trainer", "--trainer NAME", cfg.TRAINER.NAME, trainers),
        ("data set", "DATASET.NAME in --dataset-config-file FILE", cfg.DATASET.NAME, datasets),
    ):
        if not key:
            raise UserError(f"no {what} was named: give {flag}. Known: {', '.join(known)}.")
        if key not in known:
            hint = meant_trainer(key, known) if what == "trainer" else did_you_mean(key, known)
            raise UserError(
                f"there is no {what} '{key}'.{hint} Known: {', '.join(known)}. A file of your own that registers it is "
                f"loaded with --import FILE.py (docs/adding-a-{what.replace(' ', '-')}.md)."
            )


def changes(plain: Any, asked: Any) -> str:
    """`+KEY=VALUE` for each key in which two configurations ask for different computations, safe in a file name.

    Keys of the trainer's own node stand without it.
    """
    own = {name: plain.TRAINER[name] for name in asked.TRAINER if name in plain.TRAINER} | {"NAME": asked.TRAINER.NAME}
    scenarios = {**plain.SCENARIOS, "TASK": asked.SCENARIOS.TASK}
    before, after = identity({**plain, "TRAINER": own, "SCENARIOS": scenarios}), identity(asked)
    node = f"TRAINER.{asked.TRAINER.NAME.upper()}."
    changed = {
        key.removeprefix(node): (key, value)
        for key, value in sorted(after.items())
        if before.get(key) != value and not is_a(key, "in_name")
    }
    text = "".join(f"+{short}={_safe(value)}" for short, (_, value) in changed.items())
    if len(text) <= _LONGEST_CHANGES:
        return text
    exact = "".join(f"+{key}={value}" for key, value in changed.values())
    return f"{text[: _LONGEST_CHANGES - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _safe(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"[^A-Za-z0-9.,_-]", "_", text)
