"""The cases of the tasks `batch`, `stream` and `online`, as SCENARIOS names them; `scenarios.py` draws their images.

Read with the configuration, so neither numpy nor torch is imported here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dassl_clip.results.errors import UserError

TASKS = ("batch", "stream", "online")
SEPARATE = "separate"  # a stream of one class after another
BATCH_FORM = "SIZE, or SIZE:LEAST-MOST for batches of so many classes, such as 64 or 64:1-4"


@dataclass(frozen=True)
class Batch:
    """A case of the task `batch`: `size` images, of `least` to `most` classes (None: of all classes)."""

    size: int
    least: int | None = None
    most: int | None = None

    @property
    def name(self) -> str:
        """`B64`, `B64 K1-4`."""
        return f"B{self.size}" + (f" K{self.least}-{self.most}" if self.least else "")


def parse_batch(text: str) -> Batch:
    """An entry of SCENARIOS.BATCHES.

    Raises:
        UserError: It is no such text, or its numbers are too small or the wrong way round.
    """
    size, colon, classes = text.partition(":")
    least, dash, most = classes.partition("-")
    numbers = [size, least, most] if colon else [size]
    if not all(number.isdecimal() and number.isascii() for number in numbers) or bool(colon) != bool(dash):
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}; expected {BATCH_FORM}")
    batch = Batch(*map(int, numbers))
    if batch.size < 2:
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}: a batch has at least 2 images")
    if batch.least is not None and batch.most is not None and not 1 <= batch.least <= batch.most:
        raise UserError(f"SCENARIOS.BATCHES holds {text!r}: the classes are from 1 or more up to no fewer, as in 1-4")
    return batch


def parse_stream(text: str) -> float | None:
    """An entry of SCENARIOS.STREAMS: the parameter of its Dirichlet distribution, or None for `separate`.

    Raises:
        UserError: It is neither.
    """
    if text == SEPARATE:
        return None
    try:
        gamma = float(text)
    except ValueError:
        gamma = math.nan
    if not 0 < gamma < math.inf:
        raise UserError(
            f"SCENARIOS.STREAMS holds {text!r}; expected a positive number, the parameter of a Dirichlet distribution "
            f"(small: classes cluster), or {SEPARATE} for one class after another"
        )
    return gamma


def check_scenarios(cfg: Any) -> None:
    """Refuse settings of SCENARIOS that no list can be made by.

    Raises:
        UserError: The setting, what was given and what is expected.
    """
    node = cfg.SCENARIOS
    for key, parse in (("BATCHES", parse_batch), ("STREAMS", parse_stream)):
        entries = list(map(str, node[key]))
        if not entries:
            raise UserError(f"SCENARIOS.{key} is empty; name at least one, such as {'64' if key == 'BATCHES' else 0.1}")
        for entry in entries:
            parse(entry)
            if entries.count(entry) > 1:
                raise UserError(f"SCENARIOS.{key} names {entry!r} {entries.count(entry)} times; name each once")
    if node.TASK and cfg.TEST.SPLIT != "test":
        raise UserError(f"TEST.SPLIT is {cfg.TEST.SPLIT}, but {node.TASK} draws from the test images: take test")


def check_draws(cfg: Any, images: int) -> None:
    """Refuse a run whose lists have no seed, or none of whose batches the tested images can fill.

    Raises:
        UserError: SEED is negative, or every size of SCENARIOS.BATCHES is above the number of images.
    """
    task = cfg.get("SCENARIOS", {}).get("TASK")
    if task and cfg.SEED < 0:
        raise UserError(
            f"SEED is {cfg.SEED}, but {task} draws the same images for all methods: give a seed of 0 or more"
        )
    if task == "batch" and all(parse_batch(str(entry)).size > images for entry in cfg.SCENARIOS.BATCHES):
        raise UserError(
            f"SCENARIOS.BATCHES is {', '.join(map(str, cfg.SCENARIOS.BATCHES))}, but {images} images are tested here, "
            "fewer than any of these batches has; give a smaller size"
        )
