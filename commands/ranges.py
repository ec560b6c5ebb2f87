"""Values of the shared keys, and folders, that no trainer can use: refused before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dassl_clip.commands.errors import UserError, suggestion

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
SPLITS = ("test", "val")  # of TEST.SPLIT


def check_ranges(cfg: Any) -> None:
    """Refuse values that nothing can be done with.

    Raises:
        UserError: naming the key, its value and what is possible.
    """
    for key, least in LEAST.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if not math.isfinite(value) or value < least:
            raise UserError(f"{key} is {value}: it should be {least} or more")
    if cfg.TEST.SPLIT not in SPLITS:
        hint = suggestion(cfg.TEST.SPLIT, SPLITS)
        hint = " Training images are not tested." if cfg.TEST.SPLIT == "train" else hint
        raise UserError(f"TEST.SPLIT is '{cfg.TEST.SPLIT}'.{hint} Known: {', '.join(SPLITS)}.")


def open_folders(cfg: Any) -> None:
    """Make the folder of a run, and see that there is one that it goes on from.

    Raises:
        UserError: the one cannot be made, the other is not there.
    """
    if cfg.RESUME and not Path(cfg.RESUME).is_dir():
        raise UserError(f"--resume: there is no folder {cfg.RESUME}; give the folder of a run that was begun, or auto")
    folder = Path(cfg.OUTPUT_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output-dir: the folder {folder} cannot be made ({error.strerror}); name one that can"
        ) from error
