"""A finished run opened on other pictures: its configuration, its class names, its trainer with what it learned.

The training data need not be there. The data set of the run is stood in for by one that holds the pictures at hand and
the run's own class names, under the same name, since templates go by the name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.results import records
from dassl_clip.results.documents import read_config
from dassl_clip.results.errors import UserError
from dassl_clip.results.predictions import PREDICTIONS, read_predictions

from .config import coerce, default_config, import_user_code

WHAT = "give the folder of a finished run (it holds record.json and config.yaml)"


def read_run(folder: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder, record and configuration of a finished run.

    Raises:
        UserError: there is no finished run; the sentence says what is there.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; {WHAT}")
    found, tree = records.inspect_record(place), read_config(place)
    if found.record is None:
        below = [item.folder for item in records.find_records(place) if item.record is not None][:3]
        hint = f"; finished runs below it: {', '.join(map(str, below))}, ..." if below else ""
        raise UserError(f"no finished run in {place}{f' ({found.reason})' if found.reason else ''}; {WHAT}{hint}")
    if tree is None:
        raise UserError(f"{place} has a record.json but no readable config.yaml, which says how to build its trainer")
    if not tree.get("RUN", {}).get("FROM_EXPORT") and records.config_hash(tree) != found.record["config_hash"]:
        raise UserError(
            f"{place}: config.yaml is not the configuration that record.json was written for, so it would build "
            "another trainer than was tested; get the run's own config.yaml back, or run it again"
        )
    return place, found.record, tree


def class_names(place: Path, record: dict[str, Any]) -> list[str]:
    """The class names of a run in label order: of its record, else of its checkpoint, else of its predictions.

    Raises:
        UserError: none of them has the names.
    """
    if record.get("classnames"):
        return list(record["classnames"])
    from .checkpoint_files import load_checkpoint

    for path in sorted(place.glob("*/model*.pth.tar*"), reverse=True):
        with contextlib.suppress(ValueError):
            names = load_checkpoint(path).get("classnames")
            if names:
                return list(names)
    if (place / PREDICTIONS).is_file():
        return read_predictions(place).classnames
    raise UserError(
        f"the run in {place} does not say its class names: it was made before records and checkpoints held them. Run "
        "it again, or classify without a run: --names a,b,c"
    )


def run_config(tree: dict[str, Any], record: dict[str, Any]) -> Any:
    """The run's configuration on top of today's defaults, changeable.

    What the run found out itself is fixed: the weight of CLAP's head stands in the record.
    """
    cfg = default_config()
    _overlay(cfg, tree, "")
    node = cfg.TRAINER.get(record["method"].upper(), {})
    if "alpha" in record and "ALPHA" in node:
        node.ALPHA = str(record["alpha"])
    cfg.OUTPUT_DIR = cfg.RESUME = cfg.MODEL.INIT_WEIGHTS = ""
    cfg.RUN.LOGGERS = ()
    cfg.TEST.FINAL_MODEL = "last_step"  # which model it is was decided in the run
    cfg.VERBOSE = False
    return cfg


def open_run(folder: str | Path, items: Sequence[Path], imports: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """The trainer of a finished run, ready to score, on pictures that are not its own.

    Args:
        folder: the run's folder, or a file that `dassl-clip export` made of it.
        items: at least one file that exists; what the trainer takes for its data.
        imports: modules or files with trainers or data sets of the user's own.

    Returns:
        The trainer, and the run's record.

    Raises:
        UserError: there is no finished run, or its trainer is not one that scores single images.
    """
    if Path(folder).expanduser().is_file():
        return open_file(folder, items, imports)
    place, record, tree = read_run(folder)
    names = class_names(place, record)
    for module in imports:
        import_user_code(module)
    cfg = run_config(tree, record)
    for loader in (cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TEST):
        loader.SAMPLER = "SequentialSampler"
    cfg.DATALOADER.NUM_WORKERS = 0
    with stand_in(cfg.DATASET.NAME, items, names):
        trainer = build(cfg, record["method"])
    load_learned(trainer, records.learned_folder(place))
    if trainer.backbone.weights_hash != record["backbone"]["weights_hash"]:
        raise UserError(
            f"the run in {place} was made with other weights of {record['backbone']['name']} "
            f"({record['backbone']['weights_hash'][:12]}) than are there now ({trainer.backbone.weights_hash[:12]})"
        )
    return trainer, record


def open_file(path: str | Path, items: Sequence[Path], imports: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The same for an exported run."""
    from .export import load_export
    from .export_run import unpack_export

    with tempfile.TemporaryDirectory() as place:
        return open_run(unpack_export(load_export(path), Path(place, Path(path).name)), items, imports)


def device_of(cfg: Any) -> Any:
    """The device on which Dassl's trainers work under a configuration."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")


def build(cfg: Any, method: str) -> Any:
    """The trainer of a configuration, without lines on the console.

    Raises:
        UserError: no such trainer, or not one of this project's kind.
    """
    from dassl.engine import TRAINER_REGISTRY

    from .trainer import CLIPTrainer

    logging.disable(logging.NOTSET)  # importing upstream Dassl silences every logger of the process
    if method not in TRAINER_REGISTRY.registered_names():
        raise UserError(f"the run is of the trainer {method}, which is not registered: load its file with --import")
    kind = TRAINER_REGISTRY.get(method)
    if not issubclass(kind, CLIPTrainer):
        raise UserError(f"the run is of the trainer {method}, which is no CLIPTrainer of this project")
    cfg.freeze()
    with quiet():
        return kind(cfg)


def load_learned(trainer: Any, place: Path) -> None:
    """`load` from a run's folder, or from the export that an evaluation names."""
    if place.is_dir():
        load(trainer, place)
        return
    from .export import load_export
    from .export_run import unpack_export

    with tempfile.TemporaryDirectory() as folder:
        load(trainer, unpack_export(load_export(place), Path(folder, place.name)))


def load(trainer: Any, place: Path) -> None:
    """Load what a run learned, and get the trainer ready to score."""
    with quiet():
        trainer.load_model(str(place))
        trainer.set_model_mode("eval")
        trainer.before_test()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context whose console lines are shown, on stderr, only if it fails; remarks on the data were made before."""
    kept, room = io.StringIO(), logging.getLogger("dassl_clip")
    level = room.level
    room.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(kept):
            yield
    except Exception as error:
        if not isinstance(error, ValueError):
            sys.stderr.write(kept.getvalue())
        raise
    finally:
        room.setLevel(level)


@contextlib.contextmanager
def stand_in(name: str, items: Sequence[Path], names: Sequence[str]) -> Iterator[None]:
    """Within this context, Dassl's registry gives a data set of these pictures and class names under that name."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

    data = [Datum(impath=str(path), label=0, domain=0, classname=names[0]) for path in items]

    class Pictures(DatasetBase):
        """Pictures without labels, and the class names of a run."""

        stands_in = True  # these are not the run's own images, so they are not compared with its record
        domains: list[str] = []
        classnames = list(names)
        lab2cname = dict(enumerate(names))
        num_classes = len(names)

        def __init__(self, cfg: Any) -> None:
            super().__init__(train_x=data, test=data)

    Pictures.__name__ = Pictures.__qualname__ = name
    before = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    DATASET_REGISTRY.register(Pictures, force=True)
    try:
        yield
    finally:
        if before is None:
            DATASET_REGISTRY._obj_map.pop(name)
        else:
            DATASET_REGISTRY._obj_map[name] = before


def _overlay(node: Any, tree: dict[str, Any], prefix: str) -> None:
    """Put a run's values over the defaults, as values of their types; keys that are not known here are added."""
    from yacs.config import CfgNode

    for name, value in tree.items():
        key, there = f"{prefix}{name}", name in node
        if there and isinstance(node[name], CfgNode) != isinstance(value, dict):
            is_group = "is a group of keys" if isinstance(node[name], CfgNode) else "takes a value"
            raise UserError(f"the run's config.yaml: {key} {is_group}, but holds {value!r:.80}")
        if isinstance(value, dict):
            node[name] = node[name] if there else CfgNode()
            _overlay(node[name], value, f"{key}.")
        else:
            node[name] = coerce(value, node[name], key, "the run's config.yaml") if there else value
