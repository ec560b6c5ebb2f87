"""A finished run, opened again for a method that refines it: its learned parts, features, scores and class proxies."""

import logging
from collections.abc import Set
from pathlib import Path

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl_clip.results import records, run_data
from dassl_clip.results.documents import CONFIG_NAME, read_run_config
from dassl_clip.results.errors import MissingFileError, UserError

from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)

HOW = "give the folder of a finished run of this project"
# What the refining run decides itself: where things lie, and on what they run.
_KEPT = ("OUTPUT_DIR", "RESUME", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "DATALOADER.TEST", "RUN")
_KEPT += ("MODEL.BACKBONE",)  # the same model, wherever its files lie now
# What both runs must agree on for the same images to be meant.
_SHARED = ("NAME", "TARGET_DOMAINS", "SUBSAMPLE_CLASSES", "PROTOCOL", "SPLIT_SEED")


def open_run(folder: str, cfg: CfgNode, backbone: dict, tested: Set[str], key: str) -> tuple[CLIPTrainer, dict]:
    """Build the trainer of a finished run on the images of `cfg`, with what it learned.

    Args:
        folder: The run's folder.
        cfg: The configuration of the run that refines it.
        backbone: `describe()` of the backbone of that run.
        tested: Paths of the images that it tests.
        key: Name of the setting that gave the folder, for messages.

    Returns:
        The trainer, ready to score, and the run's record.

    Raises:
        MissingFileError: No finished run is there.
        UserError: The run is of another data set, domain, class subset or backbone, was tested on other images, or its
            trainer is not one of this project's kind.
    """
    place = Path(folder).expanduser()
    record = records.read_record(place)
    if record is None or not (place / CONFIG_NAME).is_file():
        there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        state = f"it holds {', '.join(there[:8]) or 'nothing'}" if place.is_dir() else "there is no such folder"
        raise MissingFileError(f"{key}: no finished run in {place} ({state}); {HOW}")
    theirs = read_run_config(place / CONFIG_NAME)
    name = theirs["TRAINER"]["NAME"]
    if "alpha" in record:  # CLAP's, as the run was tested, whatever validation images are at hand now
        theirs["TRAINER"][name.upper()]["ALPHA"] = str(record["alpha"])
    _check_same_images(place, theirs["DATASET"], cfg, key)
    if any(record["backbone"].get(fact) != backbone[fact] for fact in ("weights_hash", "activation")):
        raise UserError(
            f"{key}: the run in {place} has the backbone {_model(record['backbone'])}, this one {_model(backbone)}; "
            "set MODEL.BACKBONE.NAME and WEIGHTS to the former"
        )
    if name not in TRAINER_REGISTRY.registered_names():
        raise UserError(f"{key}: {place} is a run of {name}, which is not registered; load its file with --import")
    kind = TRAINER_REGISTRY.get(name)
    if not issubclass(kind, CLIPTrainer):
        raise UserError(
            f"{key}: {place} is a run of {name}, whose class is not a CLIPTrainer of this project, so its features "
            "and scores cannot be asked for"
        )
    trainer = kind(_merged(cfg, theirs, kind))
    there = {item.impath for item in trainer.dm.dataset.test}
    if there != tested:
        raise UserError(
            f"{key}: the run in {place} was tested on {len(there)} images and this one tests {len(tested)}, of which "
            f"{len(there & tested)} are the same; give both the same seed (the run's is {record['seed']}, this one's "
            f"{cfg.SEED}), so that no image that the run was trained on is tested"
        )
    own_images = record.get("data") and not getattr(trainer.dm.dataset, "stands_in", False)
    if own_images and record["data"]["test"] != (now := trainer.data).facts()["test"]:
        then = run_data.read_data(place)
        what = run_data.differences(then, now) if then is not None else "which ones is not known"
        raise UserError(
            f"{key}: the run in {place} was tested on other images than are there now ({what}); run it again"
        )
    trainer.load_model(str(records.learned_folder(place)))
    trainer.set_model_mode("eval")
    trainer.before_test()
    logger.info("refining %s of %s", record["method"], place)
    return trainer, record


def _model(backbone: dict) -> str:
    """A backbone's name, and what tells whether it is the same model as another."""
    activation = backbone.get("activation", "unknown")
    return f"{backbone['name']} (weights {backbone['weights_hash'][:12]}, activation {activation})"


def _check_same_images(place: Path, theirs: dict, cfg: CfgNode, key: str) -> None:
    """Raise a ValueError unless both runs test the same images under the same labels."""
    for name in _SHARED:
        ours = cfg.DATASET.get(name)
        given = theirs.get(name, ours)
        ours, given = (list(value) if isinstance(value, (tuple, list)) else value for value in (ours, given))
        if ours != given:
            raise UserError(
                f"{key}: the run in {place} has DATASET.{name} {given!r}, this one {ours!r}; a run is refined on the "
                "images and classes that it was tested on"
            )


def _merged(cfg: CfgNode, theirs: dict, kind: type[TrainerX]) -> CfgNode:
    """The run's own configuration; keys that are newer than it have their defaults."""
    merged = cfg.clone()
    merged.defrost()
    _overlay(merged, theirs, "")
    merged.MODEL.INIT_WEIGHTS = ""  # what the run learned takes its place
    declare = getattr(kind, "add_config", None)
    if declare is not None:
        declare(merged)
    merged.freeze()
    return merged


def _overlay(node: CfgNode, tree: dict, prefix: str) -> None:
    for name, value in tree.items():
        if f"{prefix}{name}" in _KEPT:
            continue
        if name in node and isinstance(node[name], CfgNode) != isinstance(value, dict):
            raise UserError(f"the refined run's config.yaml: {prefix}{name} should not hold {value!r:.80}")
        if isinstance(value, dict):
            if name not in node:
                node[name] = CfgNode()
            _overlay(node[name], value, f"{prefix}{name}.")
        else:
            node[name] = value
