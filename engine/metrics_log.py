"""Where a run's numbers go besides tensorboard: `metrics.csv` always, Weights & Biases and MLflow on request.

`RUN.LOGGERS` names the services; it is no part of a run's identity. A service's package is imported only if it is
named. Each reads its own environment variables (`WANDB_PROJECT`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME`, ...). The ids of a run there stand in `loggers.json`, so that a resumed run goes on there.

`metrics.csv` has a row for each finished epoch (or check of a training without epochs) and a last row, `final`, with
what was measured at the end. It is made from the history in the checkpoint, and from the validation results that are
there already, and is always written whole; so it never has a row twice, however often a run was resumed.
"""

import contextlib
import csv
import functools
import importlib
import importlib.util
import io
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import check_regular
from dassl_clip.results.records import identity, write_text_atomically

from . import distributed

logger = logging.getLogger(__name__)

CSV_NAME, IDS_NAME = "metrics.csv", "loggers.json"
FINAL = "final"
FIRST_COLUMNS = ("stage", "epoch", "step", "lr")
PROJECT = "dassl-clip"
TITLE_PARTS = 6  # of the run folder: data set, method, config, shots, target and seed in the usual ones
MLFLOW_BATCH, MLFLOW_LONGEST = 90, 500  # parameters a call, characters a value: below the limits of its servers


class MetricsTable:
    """The rows of `metrics.csv`.

    Args:
        path: The file.
        epochs: Number of finished epochs; what the file says of their validation is kept.
    """

    def __init__(self, path: Path, epochs: int):
        self.path = path
        self.evaluations: dict[int, dict[str, float]] = {}
        self.final: dict[str, float] = {}
        for row in _read_rows(path):
            if row.get("epoch", "").isdigit() and int(row["epoch"]) <= epochs:
                measured = {name: float(value) for name, value in row.items() if "/" in name and value}
                self.evaluations[int(row["epoch"])] = measured

    def write(self, history: list[dict[str, float]]) -> None:
        """Write the whole file.

        Args:
            history: Means of each epoch (with `epoch`, from 1) or of each check (with `step`).
        """
        if not distributed.is_main():
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
        write_text_atomically(self.path, text.getvalue())


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


class WandbLogger:
    """Scalars to Weights & Biases; each part (train, val, test) counts its own steps."""

    def __init__(self, wandb: Any, name: str, folder: Path, config: dict[str, Any], known: str):
        self.id = known or uuid.uuid4().hex[:12]
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self.run = wandb.init(project=project, name=name, dir=str(folder), config=config, id=self.id, resume="allow")
        for part in ("train", "val", "test"):
            self.run.define_metric(f"{part}/*", step_metric=f"{part}/step")

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Log one value."""
        self.run.log({tag: value, f"{tag.partition('/')[0]}/step": step})

    def finish(self) -> None:
        """Tell the service that the run is done."""
        self.run.finish()


class MlflowLogger:
    """Scalars to MLflow."""

    def __init__(self, mlflow: Any, name: str, folder: Path, config: dict[str, Any], known: str):
        self.mlflow = mlflow
        self.id = mlflow.start_run(run_id=known or None, run_name=None if known else name).info.run_id
        if not known:
            pairs = [(key, str(value)[:MLFLOW_LONGEST]) for key, value in config.items()]
            for start in range(0, len(pairs), MLFLOW_BATCH):
                mlflow.log_params(dict(pairs[start : start + MLFLOW_BATCH]))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Log one value."""
        self.mlflow.log_metric(tag, value, step=step)

    def finish(self) -> None:
        """Tell the service that the run is done."""
        self.mlflow.end_run()


SERVICES = {"wandb": WandbLogger, "mlflow": MlflowLogger}


def add_config(cfg: CfgNode) -> None:
    """Add `RUN.LOGGERS`, the names of the services that a run logs to; none by default."""
    if "RUN" not in cfg:
        cfg.RUN = CfgNode()
    cfg.RUN.setdefault("LOGGERS", ())


def services(cfg: CfgNode) -> list[str]:
    """The names in `RUN.LOGGERS`, each once.

    Raises:
        UserError: An unknown name, or a package that is not installed.
    """
    given = cfg.get("RUN", {}).get("LOGGERS", ())
    given = (given,) if isinstance(given, str) else given or ()
    if not isinstance(given, (list, tuple)) or not all(isinstance(word, str) for word in given):
        raise UserError(f"RUN.LOGGERS is {given!r}; expected any of {', '.join(SERVICES)}")
    names = list(dict.fromkeys(name.strip().lower() for word in given for name in word.split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            raise UserError(
                f"RUN.LOGGERS is {given!r}; expected any of {', '.join(SERVICES)} (tensorboard and {CSV_NAME} are "
                f"always written)"
            )
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as the one W&B makes, is no package
            raise UserError(
                f"RUN.LOGGERS asks for {name}, which is not installed: `pip install {name}`, or leave it out"
            )
    return names


@functools.cache
def _quiet_threads() -> None:
    """Print no traceback of tensorboard's thread: its error is raised again where the next value is written."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


class LoggingMixin:
    """Sends what a trainer writes as scalars to `metrics.csv` and to the services of `RUN.LOGGERS`."""

    def before_train(self) -> None:
        """Dassl's start of training (resume, open tensorboard), then the table and the services."""
        super().before_train()
        folder = Path(self.output_dir)
        self._table = MetricsTable(folder / CSV_NAME, self.start_epoch)
        self._services = self._open_services(folder)
        self._training = True

    def init_writer(self, log_dir) -> None:
        """Open tensorboard, in the main process."""
        if distributed.is_main():
            _quiet_threads()
            with self._tensorboard():
                super().init_writer(log_dir)

    def close_writer(self) -> None:
        """Close tensorboard's file."""
        with self._tensorboard():
            super().close_writer()

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        """Within this context a disk that refuses ends tensorboard's file, and not the run."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            logger.warning("tensorboard's file below %s gets nothing more of this run: %s", self.output_dir, reason)
            self._writer = None

    def after_epoch(self) -> None:
        """Dassl's end of an epoch (validate, save), then the table."""
        super().after_epoch()
        self._table.write(self.history)

    def after_train(self) -> None:
        """Dassl's end of training (choose the model, test), then the table, and the services are told."""
        self._training = False
        super().after_train()
        self._table.write(self.history)
        for name in list(self._services):
            self._tell(name, "finish")

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """One value to tensorboard and, during training, to the table and the services."""
        with self._tensorboard():
            super().write_scalar(tag, scalar_value, global_step)
        if "_table" not in self.__dict__:
            return
        value, step = float(scalar_value), int(global_step or 0)
        if not tag.startswith("train/"):
            place = self._table.evaluations.setdefault(step + 1, {}) if self._training else self._table.final
            place[tag] = value
        for name in list(self._services):
            self._tell(name, "scalar", tag, value, step)

    def _open_services(self, folder: Path) -> dict[str, Any]:
        names = services(self.cfg)
        if not names or not distributed.is_main():
            return {}
        path, opened = folder / IDS_NAME, {}
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and self.start_epoch else {}
        title = "/".join([part for part in folder.parts if part != folder.anchor][-TITLE_PARTS:])
        facts = identity(self.asked) | {key: self.asked.RUN[key] for key in ("TASK", "CONFIG") if key in self.asked.RUN}
        for name in names:
            try:
                opened[name] = SERVICES[name](importlib.import_module(name), title, folder, facts, known.get(name, ""))
            except Exception as error:
                raise UserError(
                    f"RUN.LOGGERS: {name} could not be started ({type(error).__name__}: {' '.join(str(error).split())})"
                    f"; log in to it, run it offline, or leave it out"
                ) from error
            logger.info("logging to %s (run %s)", name, opened[name].id)
        ids = known | {name: service.id for name, service in opened.items()}
        write_text_atomically(path, json.dumps(ids) + "\n")
        return opened

    def _tell(self, name: str, what: str, *values: Any) -> None:
        """Call a service; one that fails is left out from then on, so that it cannot end a run."""
        try:
            getattr(self._services[name], what)(*values)
        except Exception as error:
            logger.warning("%s no longer answers and gets nothing more of this run: %s", name, error)
            self._services.pop(name)
