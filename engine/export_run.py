"""Exports (`engine/export.py`) made of a trainer, and run folders made of exports.

Shapes: `C` classes, `E` joint embedding, `B` images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from dassl_clip.clip.weights import hash_state
from dassl_clip.results import records
from dassl_clip.results.documents import CONFIG_NAME, read_run_config
from dassl_clip.results.errors import UserError

from . import checkpoint_files as checkpoint
from .export import FULL, HALF, Export, Storage, as_bytes, check_learned, stored

logger = logging.getLogger(__name__)

REFINED = "refined"
# Where a run lay on its machine; the learned parts take the place of weights that they started from.
LEFT_OUT = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "MODEL.INIT_WEIGHTS")
TRIALS, TOLERANCE = 64, 1e-5  # features on which a classifier is compared, largest difference relative to the scores
PICTURES = 32  # embedded ones on which half precision is measured

LINEAR = "scores = logit_scale * normalize(image features) @ weight.T"
PER_IMAGE = "none: the class features of an image depend on that image, so no classifier serves all images"
NOT_LINEAR = "none: the scores are not a linear function of the normalised image features"


def make_export(trainer: Any, config: Mapping[str, Any], record: Mapping[str, Any], half: bool = False) -> Export:
    """The export of a finished run, without learned parts that no score passes through.

    Args:
        trainer: Its trainer, with what it learned, after `before_test`.
        config: Its resolved configuration.
        record: Its record.
        half: Store the learned parts in float16; what that changes is measured.

    Raises:
        UserError: What the trainer holds is not what the record was written of, or does not fit into float16.
    """
    learned = {
        name: {
            key: value.detach().cpu().clone().contiguous() for key, value in trainer._models[name].state_dict().items()
        }
        for name in trainer.get_model_names()
    }
    check_learned(learned, record, "the run's checkpoint")
    unread = tuple(trainer.unread_parts)
    left_out = {name: [key for key in state if key.startswith(unread)] for name, state in learned.items()}
    learned = {
        name: {key: value for key, value in state.items() if key not in left_out[name]}
        for name, state in learned.items()
    }
    weight = linear_classifier(trainer)
    note = LINEAR if weight is not None else NOT_LINEAR if trainer.reads_features else PER_IMAGE
    made = Export(
        learned=learned,
        classnames=list(trainer.classnames),
        backbone=trainer.backbone.describe(),
        config=_portable(config),
        record=dict(record),
        classifier=weight,
        logit_scale=None if weight is None else trainer.logit_scale.detach().cpu().clone(),
        note=note,
        storage=Storage(HALF if half else FULL, {name: keys for name, keys in left_out.items() if keys}),
        base=_export_base(trainer, half),
    )
    return replace(made, storage=replace(made.storage, note=halving_note(trainer, made))) if half and learned else made


def _export_base(trainer: Any, half: bool) -> Export | None:
    """The export of the run that a trainer refines, if it refines one."""
    base = getattr(trainer, "base", None)
    if base is None:
        return None
    tree = read_run_config(Path(trainer.node.FROM).expanduser() / CONFIG_NAME)
    return make_export(base, tree, trainer.base_record, half)


@torch.no_grad()
def linear_classifier(trainer: Any) -> Tensor | None:
    """The weights `[C, E]` of the linear classifier that a trainer's scores amount to, or None.

    The columns are the scores of the unit vectors; random features tell whether the scores are linear at all.
    """
    if not trainer.reads_features:
        return None
    width, scale = trainer.backbone.embed_dim, trainer.logit_scale
    weight = trainer.feature_logits(torch.eye(width, device=trainer.device)).float().T / scale
    trials = torch.randn(TRIALS, width, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    scores = trainer.feature_logits(trials).float()
    difference = (scores - scale * F.normalize(trials, dim=-1) @ weight.T).abs().max()
    return weight.cpu().contiguous() if difference <= TOLERANCE * scores.abs().max() else None


@torch.no_grad()
def halving_note(trainer: Any, export: Export) -> str:
    """How much float16 changes the scores of some embedded pictures, as a sentence; the trainer stays as it is."""
    images = sample_pictures(trainer.backbone.preprocess()).to(trainer.device)
    before = trainer.model_inference(images).float()
    kept = {name: {k: v.clone() for k, v in trainer._models[name].state_dict().items()} for name in export.learned}
    try:
        for name, state in export.learned.items():
            halved = {key: stored(value, HALF).to(value.dtype) for key, value in state.items()}
            trainer._models[name].load_state_dict(kept[name] | halved)
        trainer.before_test()
        after = trainer.model_inference(images).float()
    finally:
        for name, state in kept.items():
            trainer._models[name].load_state_dict(state)
        trainer.before_test()
    same = int(after.argmax(1).eq(before.argmax(1)).sum())
    moved, span, count = (after - before).abs().max().item(), (before.max() - before.min()).item(), len(images)
    return (
        f"float16 moves a score of {count} embedded pictures by at most {moved:.2g} (their scores span {span:.3g}); "
        f"{same} of {count} keep their best class"
    )


def sample_pictures(preprocess: Any) -> Tensor:
    """Some of the embedded pictures, evenly over all styles, `[B, 3, H, W]`."""
    from dassl_clip.clip.sources import embedded_folder
    from dassl_clip.datasets.file_checks import read_image

    paths = sorted((embedded_folder().parent / "icons").rglob("*.png"))
    chosen = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
    return torch.stack([preprocess(read_image(path)) for path in chosen])


def save_export(export: Export, path: Path) -> None:
    """Write an export, atomically."""
    records.write_bytes_atomically(Path(path), as_bytes(export))


def unpack_export(export: Export, folder: Path) -> Path:
    """Make a run folder of an export, for everything that takes one; the record is written last.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds something.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a folder that does not exist yet")
    records.check_record(export.record)
    config = json.loads(json.dumps(export.config))
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
        checkpoint.save_checkpoint(content, folder / name / checkpoint.BEST_NAME, point=False)
    config.setdefault("RUN", {})["FROM_EXPORT"] = True  # keys that held on the run's machine alone are empty
    records.write_text_atomically(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=True))
    records.write_record(folder, export.record)
    return folder


def _portable(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as plain values, with what held on the run's machine alone left empty."""
    tree: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            tree[key] = _portable(value, f"{name}.")
        else:
            tree[key] = "" if name in LEFT_OUT else list(value) if isinstance(value, tuple) else value
    return tree
