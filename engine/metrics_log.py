"""Where a run's numbers go: `metrics.csv`, tensorboard's files, and Weights & Biases on request.

`RUN.LOGGERS wandb` copies what tensorboard gets, by wandb's own synchronisation. The package is imported only then, and
reads its own environment variables (`WANDB_PROJECT`, `WANDB_MODE`, ...). The run's id there stands in `loggers.json`,
so that a resumed run continues it. `RUN.LOGGERS` is no part of a run's identity.

`metrics.csv` has a row for each finished epoch (or check of a training without epochs) and a last row, `final`, with
what was measured at the end. It is made from the history in the checkpoint and from the validation results that are
there already, and is always written whole; so it never has a row twice, however often a run was resumed.
"""

import contextlib
import csv
import functools
import importlib.util
import io
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import check_regular, write_text_atomically

from . import distributed

logger = logging.getLogger(__name__)

CSV_NAME, IDS_NAME = "metrics.csv", "loggers.json"
FINAL = "final"
FIRST_COLUMNS = ("stage", "epoch", "step", "lr")
WANDB, PROJECT = "wandb", "dassl-clip"
TITLE_PARTS = 6  # of the run folder: data set, method, config, shots, target and seed in the usual ones


def wants_wandb(cfg: CfgNode) -> bool:
    """Whether `RUN.LOGGERS` names Weights & Biases.

    Raises:
        UserError: It names anything else, or the package is not installed.
    """
    given = cfg.get("RUN", {}).get("LOGGERS", ())
    words = (given,) if isinstance(given, str) else given or ()
    names = {str(word).strip().lower() for word in words} - {""} if isinstance(words, (list, tuple)) else {str(words)}
    if not names:
        return False
    if names != {WANDB}:
        raise UserError(
            f"RUN.LOGGERS is {given!r}; expected {WANDB}, or nothing (tensorboard and {CSV_NAME} are always written)"
        )
    spec = importlib.util.find_spec(WANDB)
    if spec is None or spec.origin is None:  # a folder of that name, such as the one W&B makes, is no package
        raise UserError(f"RUN.LOGGERS asks for {WANDB}, which is not installed: `pip install {WANDB}`, or leave it out")
    return True


class MetricsLog:
    """The log of one run. It serves as Dassl's writer: scalars come by `add_scalar`, the end by `close`.

    Args:
        folder: The run's folder.
        with_wandb: Copy what tensorboard gets to Weights & Biases.
        facts: What the service shows of the run.

    Attributes:
        evaluations: Results of the validations, by the number of finished epochs.
        final: Results at the end.
        is_final: Whether results are of the end.
    """

    def __init__(self, folder: Path, with_wandb: bool = False, facts: Mapping[str, Any] | None = None):
        self.folder, self.with_wandb, self.facts = folder, with_wandb, dict(facts or {})
        self.evaluations: dict[int, dict[str, float]] = {}
        self.final: dict[str, float] = {}
        self.is_open = self.is_final = False
        self._tensorboard: Any = None
        self._wandb: Any = None

    def open(self, epochs: int) -> None:
        """Begin to log; what an earlier start of the run says of its first `epochs` epochs is kept."""
        self.is_open = True
        for row in _read_rows(self.folder / CSV_NAME):
            if row.get("epoch", "").isdigit() and int(row["epoch"]) <= epochs:
                measured = {name: float(value) for name, value in row.items() if "/" in name and value}
                self.evaluations[int(row["epoch"])] = measured
        if not distributed.is_main():
            return
        if self.with_wandb:
            self._wandb = self._start_wandb(resumes=epochs > 0)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("tensorboard is not installed: its files are not written")
            return
        _quiet_threads()
        with self._ended_by_disk():
            self._tensorboard = SummaryWriter(log_dir=str(self.folder / "tensorboard"))

    def _start_wandb(self, resumes: bool) -> Any:
        path = self.folder / IDS_NAME
        ids = json.loads(path.read_text(encoding="utf-8")) if resumes and path.is_file() else {}
        ids.setdefault(WANDB, uuid.uuid4().hex[:12])
        title = "/".join([part for part in self.folder.parts if part != self.folder.anchor][-TITLE_PARTS:])
        try:
            import wandb

            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=title,
                dir=str(self.folder),
                config=self.facts,
                id=ids[WANDB],
                resume="allow",
                sync_tensorboard=True,  # before a writer is made
            )
        except Exception as error:
            raise UserError(
                f"RUN.LOGGERS: {WANDB} could not be started ({type(error).__name__}: {' '.join(str(error).split())}); "
                "log in to it, run it offline, or leave it out"
            ) from error
        logger.info("logging to %s (run %s)", WANDB, ids[WANDB])
        write_text_atomically(path, json.dumps(ids) + "\n")
        return run

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Log one value, see `add_scalars`."""
        self.add_scalars({tag: value}, step)

    def add_scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log values: `train/...` of a step, or `val/...` and `test/...` after the epoch of number `step`."""
        if not self.is_open:
            return
        for tag, value in values.items():
            if not tag.startswith("train/"):
                row = self.final if self.is_final else self.evaluations.setdefault(int(step or 0) + 1, {})
                row[tag] = float(value)
            if self._tensorboard is not None:
                with self._ended_by_disk():
                    self._tensorboard.add_scalar(tag, value, step)

    def write_table(self, history: list[dict[str, float]]) -> None:
        """Write `metrics.csv`.

        Args:
            history: Means of each epoch (with `epoch`, from 1) or of each check (with `step`).
        """
        if not distributed.is_main() or not self.is_open:
            return
        rows = [
            {"stage": "train", **entry, **self.evaluations.get(int(entry.get("epoch", 0)), {})} for entry in history
        ]
        rows += [{"stage": FINAL, **self.final}] if self.final else []
        names = dict.fromkeys([*FIRST_COLUMNS, *(name for row in rows for name in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.folder / CSV_NAME, text.getvalue())

    def close(self) -> None:
        """End tensorboard's file, and the run at Weights & Biases."""
        if self._tensorboard is not None:
            with self._ended_by_disk():
                self._tensorboard.close()
        if self._wandb is not None:
            try:
                self._wandb.finish()
            except Exception as error:  # such as a network that is gone: it cannot end a run
                logger.warning("%s was not notified that the run is done: %s", WANDB, error)
        self._tensorboard = self._wandb = None

    @contextlib.contextmanager
    def _ended_by_disk(self) -> Iterator[None]:
        """Within this context a disk that refuses ends tensorboard's file, and not the run."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            logger.warning("tensorboard's file below %s gets nothing more of this run: %s", self.folder, reason)
            self._tensorboard = None


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier file; none if it is not there or is not one of this kind."""
    try:
        check_regular(path)
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if k and isinstance(v, str)} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        logger.warning("%s cannot be read and is written anew: %s", path, error)
        return []


@functools.cache
def _quiet_threads() -> None:
    """Print no traceback of tensorboard's thread: its error is raised again where the next value is written."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook
