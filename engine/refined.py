"""A finished run, opened on the images of a run that refines it, once both are known to mean the same images."""

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_clip.results import run_data
from dassl_clip.results.errors import UserError

from .config import keys_with
from .open_run import open_run, read_run
from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)


def open_refined(
    folder: str, cfg: CfgNode, backbone: Mapping[str, Any], tested: Set[str], key: str
) -> tuple[CLIPTrainer, dict[str, Any]]:
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
    try:
        return _open(Path(folder).expanduser(), cfg, backbone, tested)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error


def _open(
    folder: Path, cfg: CfgNode, backbone: Mapping[str, Any], tested: Set[str]
) -> tuple[CLIPTrainer, dict[str, Any]]:
    record, tree = read_run(folder)
    for name in (key.removeprefix("DATASET.") for key in keys_with("same_images")):
        ours = cfg.DATASET.get(name)
        theirs = tree["DATASET"].get(name, ours)
        ours, theirs = (list(value) if isinstance(value, (tuple, list)) else value for value in (ours, theirs))
        if ours != theirs:
            raise UserError(
                f"the run in {folder} has DATASET.{name} {theirs!r}, this one {ours!r}; a run is refined on the images "
                "and classes that it was tested on"
            )
    if any(record["backbone"].get(fact) != backbone[fact] for fact in ("weights_hash", "activation")):
        raise UserError(
            f"the run in {folder} has the backbone {_model(record['backbone'])}, this one {_model(backbone)}; set "
            "MODEL.BACKBONE.NAME and WEIGHTS to the former"
        )
    trainer, record = open_run(folder, opener=cfg)
    dataset = trainer.dm.dataset
    images = {item.impath for item in dataset.test}
    if images != tested:
        raise UserError(
            f"the run in {folder} was tested on {len(images)} images and this one tests {len(tested)}, of which "
            f"{len(images & tested)} are the same; give both the same seed (the run's is {record['seed']}, this one's "
            f"{cfg.SEED}), so that no image that the run was trained on is tested"
        )
    known = record.get("data") and not getattr(dataset, "stands_in", False)
    if known and record["data"]["test"] != trainer.data.facts()["test"]:
        then = run_data.read_data(folder)
        what = run_data.differences(then, trainer.data) if then is not None else "which ones is not known"
        raise UserError(f"the run in {folder} was tested on other images than are there now ({what}); run it again")
    logger.info("refining %s of %s", record["method"], folder)
    return trainer, record


def _model(backbone: Mapping[str, Any]) -> str:
    """A backbone's name, and what tells whether it is the same model as another."""
    activation = backbone.get("activation", "unknown")
    return f"{backbone['name']} (weights {backbone['weights_hash'][:12]}, activation {activation})"
