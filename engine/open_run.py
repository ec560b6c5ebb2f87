"""A finished run, or an export of one, opened again: its configuration, class names and trainer, as it was tested."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dassl_clip.clip.weights import hash_state
from dassl_clip.results import records
from dassl_clip.results.documents import CONFIG_NAME, read_config
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.predictions import PREDICTIONS, read_predictions

from . import checkpoint_files
from .config import coerce, default_config, keys_with
from .export import Export, load_export
from .fingerprint import config_hash
from .registry import import_user_code

logger = logging.getLogger(__name__)

WHAT = "give the folder of a finished run (it holds record.json and config.yaml)"
REFINED = "refined"  # folder of the run that an export's run refines


def open_run(
    source: str | Path,
    images: Sequence[Path] = (),
    *,
    root: str = "",
    opener: Any = None,
    imports: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """The trainer of a finished run, with what it learned, ready to score.

    Its data are those in `root`, or those of the run that opens it. Where neither is given, the training data need not
    be there: a data set that holds `images` and the run's class names takes their place.

    Args:
        source: The run's folder, or a file that `dassl-clip export` made of it.
        images: Files that exist; what the trainer takes for its data.
        root: Folder above the data sets.
        opener: The configuration of a run that opens this one.
        imports: Modules or files with the user's own trainers or data sets.

    Returns:
        The trainer, and the run's record.

    Raises:
        UserError: There is no finished run, or its trainer is not one of this project's kind.
    """
    from .given_images import GivenImages, Item, stand_in
    from .trainer import CLIPTrainer

    with run_folder(source) as folder, contextlib.ExitStack() as stack:
        record, tree = read_run(folder)
        for module in imports:
            import_user_code(module)
        cfg, kind = run_config(tree, record), trainer_class(record["method"])
        if not issubclass(kind, CLIPTrainer):
            raise UserError(f"the run is of the trainer {record['method']}, which is no CLIPTrainer of this project")
        if root:
            cfg.DATASET.ROOT = root
        elif opener is not None:
            for key in keys_with("of_machine"):
                *groups, name = key.split(".")
                old, new = cfg, opener
                for group in groups:
                    old, new = old[group], new[group]
                old[name] = copy.deepcopy(new[name])
        else:
            cfg.DATALOADER.TRAIN_X.SAMPLER = cfg.DATALOADER.TEST.SAMPLER = "SequentialSampler"
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.SCENARIOS.TASK = ""  # nothing is measured, and the images may have no labels
            names = class_names(folder, record)
            paths = map(str, images or [folder / records.RECORD_NAME])
            stack.enter_context(stand_in(cfg.DATASET.NAME, GivenImages(names, [*map(Item, paths)])))
        cfg.freeze()
        with quiet():
            trainer = kind(cfg)
        load_learned(trainer, records.learned_folder(folder))
    if trainer.backbone.weights_hash != record["backbone"]["weights_hash"]:
        raise UserError(
            f"the run in {source} was made with other weights of {record['backbone']['name']} "
            f"({record['backbone']['weights_hash'][:12]}) than are there now ({trainer.backbone.weights_hash[:12]})"
        )
    return trainer, record


@contextlib.contextmanager
def run_folder(source: str | Path) -> Iterator[Path]:
    """Within this context, the folder of a run: of an export, a temporary one that is made of it."""
    path = Path(source).expanduser()
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield unpack_export(load_export(path), Path(scratch, path.name))


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record and configuration of a finished run.

    Raises:
        UserError: There is no finished run; the message says what is there.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}; {WHAT}")
    found, tree = records.inspect_record(folder), read_config(folder)
    if found.record is None:
        below = [item.folder for item in records.find_records(folder) if item.record is not None][:3]
        hint = f"; finished runs below it: {', '.join(map(str, below))}, ..." if below else ""
        holds = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise MissingFileError(f"no finished run in {folder} ({found.reason or f'it holds {holds}'}); {WHAT}{hint}")
    if tree is None:
        raise UserError(f"{folder} has a record.json but no readable config.yaml, which says how to build its trainer")
    if not tree.get("RUN", {}).get("FROM_EXPORT") and config_hash(tree) != found.record["config_hash"]:
        raise UserError(
            f"{folder}: config.yaml is not the configuration that record.json was written for, so it would build "
            "another trainer than was tested; get the run's own config.yaml back, or run it again"
        )
    return found.record, tree


def class_names(folder: Path, record: dict[str, Any]) -> list[str]:
    """The class names of a run in label order: of its record, else of its checkpoint, else of its predictions.

    Raises:
        UserError: None of them has the names.
    """
    if record.get("classnames"):
        return list(record["classnames"])
    for path in sorted(folder.glob("*/model*.pth.tar*"), reverse=True):
        with contextlib.suppress(ValueError):
            names = checkpoint_files.load_checkpoint(path).get("classnames")
            if names:
                return list(names)
    if (folder / PREDICTIONS).is_file():
        return read_predictions(folder).classnames
    raise UserError(
        f"the run in {folder} does not say its class names: it was made before records and checkpoints held them. Run "
        "it again, or classify without a run: --names a,b,c"
    )


def trainer_class(method: str) -> type[Any]:
    """The class of a run's trainer.

    Raises:
        UserError: It is not registered.
    """
    from dassl.engine import TRAINER_REGISTRY

    logging.disable(logging.NOTSET)  # importing upstream Dassl silences every logger of the process
    if method not in TRAINER_REGISTRY.registered_names():
        raise UserError(f"the run is of the trainer {method}, which is not registered: load its file with --import")
    kind: type[Any] = TRAINER_REGISTRY.get(method)
    return kind


def run_config(tree: dict[str, Any], record: dict[str, Any]) -> Any:
    """The run's configuration on top of today's defaults, changeable; what the run found out itself is fixed."""
    cfg = default_config()
    _overlay(cfg, tree, "")
    method = record["method"]
    for key, fact in getattr(trainer_class(method), "fixed_in_record", {}).items():
        if fact in record:
            node = cfg.TRAINER[method.upper()]
            node[key] = coerce(record[fact], node[key], key, "the run's record.json")
    cfg.OUTPUT_DIR = cfg.RESUME = cfg.MODEL.INIT_WEIGHTS = ""
    cfg.RUN.LOGGERS = ()
    cfg.TEST.FINAL_MODEL = "last_step"  # which model it is was decided in the run
    cfg.VERBOSE = False
    return cfg


def load_learned(trainer: Any, source: Path) -> None:
    """Load what a run learned, from its folder or an export, and get the trainer ready to score."""
    with run_folder(source) as folder, quiet():
        trainer.load_model(str(folder))
        trainer.set_model_mode("eval")
        trainer.before_test()


def unpack_export(export: Export, folder: Path) -> Path:
    """Make a run folder of an export, for everything that takes one; the record is written last.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds something.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a folder that does not exist yet")
    records.check_record(export.record)
    config = copy.deepcopy(export.config)
    weights = config["MODEL"]["BACKBONE"].get("WEIGHTS", "")
    if weights and not Path(weights).expanduser().is_file():
        logger.warning("%s, the backbone's file of the run, is not here: taking it by its name", weights)
        config["MODEL"]["BACKBONE"]["WEIGHTS"] = ""
    if export.base is not None:
        config["TRAINER"][export.record["method"].upper()]["FROM"] = str(unpack_export(export.base, folder / REFINED))
    for name, state in export.learned.items():
        content = {
            "state_dict": state,
            "sha256": hash_state(state),
            "left_out": list(export.storage.left_out.get(name, ())),
            "trainer": export.record["method"],
            "backbone": export.backbone,
            "classnames": export.classnames,
        }
        checkpoint_files.save_checkpoint(content, folder / name / checkpoint_files.BEST_NAME, point=False)
    config.setdefault("RUN", {})["FROM_EXPORT"] = True  # keys that held on the run's machine alone are empty
    write_text_atomically(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=True))
    records.write_record(folder, export.record)
    return folder


@contextlib.contextmanager
def quiet(least: int = logging.ERROR) -> Iterator[None]:
    """A context whose console lines are shown, on stderr, only if it fails; the log is kept from the level `least` on.

    By default errors alone: remarks on the data were made before.
    """
    console, package = io.StringIO(), logging.getLogger("dassl_clip")
    level = package.level
    package.setLevel(least)
    try:
        with contextlib.redirect_stdout(console):
            yield
    except Exception as error:
        if not isinstance(error, ValueError):
            sys.stderr.write(console.getvalue())
        raise
    finally:
        package.setLevel(level)


def _overlay(node: Any, tree: dict[str, Any], prefix: str) -> None:
    """Put a run's values over the defaults, as values of their types; keys that are not known here are added."""
    from yacs.config import CfgNode

    for name, value in tree.items():
        key, known = f"{prefix}{name}", name in node
        if known and isinstance(node[name], CfgNode) != isinstance(value, dict):
            is_group = "is a group of keys" if isinstance(node[name], CfgNode) else "takes a value"
            raise UserError(f"the run's config.yaml: {key} {is_group}, but holds {value!r:.80}")
        if isinstance(value, dict):
            node[name] = node[name] if known else CfgNode()
            _overlay(node[name], value, f"{key}.")
        else:
            node[name] = coerce(value, node[name], key, "the run's config.yaml") if known else value
