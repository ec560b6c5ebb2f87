"""Values of the shared keys, and folders, that no trainer can use: refused before anything is loaded."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.records import flatten_config

# key -> least value
LEAST = {
    "OPTIM.LR": 0.0,
    "OPTIM.MAX_EPOCH": 0,
    "OPTIM.WEIGHT_DECAY": 0.0,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
    "DATALOADER.TEST.BATCH_SIZE": 1,
    "TRAIN.PRINT_FREQ": 1,
    "TRAIN.CHECKPOINT_FREQ": 0,
}
# key -> largest value: a seed of numpy's generator
MOST = {"SEED": 2**32 - 1, "DATASET.SPLIT_SEED": 2**32 - 1}
_LARGEST = 2**63 - 1  # of any whole number: torch's own
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
SPLITS = ("test", "val")  # of TEST.SPLIT


def check_ranges(cfg: Any) -> None:
    """Refuse values that nothing can be done with.

    Raises:
        UserError: naming the key, its value and what is possible.
    """
    values = flatten_config(cfg)
    for key, value in values.items():
        trouble = next(filter(None, map(_trouble, value if isinstance(value, list) else [value])), "")
        if trouble:
            raise UserError(f"{key} is {value!r:.80}: {trouble}")
    for key, least in LEAST.items():
        if values[key] < least:
            raise UserError(f"{key} is {values[key]}: it should be {least} or more")
    for key, most in MOST.items():
        if values.get(key, 0) > most:
            raise UserError(f"{key} is {values[key]}: it should be {most} or less; below 0 means unseeded")
    if cfg.TEST.SPLIT not in SPLITS:
        hint = did_you_mean(cfg.TEST.SPLIT, SPLITS)
        hint = " Training images are not tested." if cfg.TEST.SPLIT == "train" else hint
        raise UserError(f"TEST.SPLIT is '{cfg.TEST.SPLIT}'.{hint} Known: {', '.join(SPLITS)}.")


def _trouble(value: Any) -> str:
    """Why no program can use a value, or an empty text."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        return "this is no text in UTF-8; rename the file or folder"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is expected"
    return "the number is too large" if isinstance(value, int) and abs(value) > _LARGEST else ""


def open_folders(cfg: Any) -> None:
    """Make the folder of a run, and see that there is one that it goes on from.

    Raises:
        UserError: the one cannot be made, the other is not there.
    """
    if cfg.RESUME and not Path(cfg.RESUME).is_dir():
        raise UserError(f"--resume: there is no folder {cfg.RESUME}; give the folder of a run that was begun, or auto")
    make_folder(Path(cfg.OUTPUT_DIR), "--output-dir")


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
