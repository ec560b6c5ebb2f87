"""What a trainer knows of its run's record; the rest follows from the configuration and the machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dassl_clip.clip.weights import hash_state
from dassl_clip.results import environment, records
from dassl_clip.results.protocols import (
    BEST_ON_TEST,
    BEST_ON_VAL,
    FILE_NOT_RECORDED,
    LAST,
    NO_LABELS,
    NOTHING_LEARNED,
)

from . import checkpoint_files, distributed
from .fingerprint import config_facts, named_files
from .source import known_budget

if TYPE_CHECKING:
    from .trainer import CLIPTrainer


def trainer_facts(trainer: "CLIPTrainer") -> dict[str, Any]:
    """The entries of a record that hold for every method."""
    dataset, cfg, names = trainer.dm.dataset, trainer.cfg, trainer.get_model_names()
    learns = trainer.trains_on_labels and is_trained(trainer)
    states = {name: trainer._models[name].state_dict() for name in names}
    facts = {
        "prompt": trainer.prompt,
        "backbone": trainer.backbone.describe(),
        "input": {key: cfg.INPUT[key] for key in ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD")},
        "num_train": len(dataset.train_x) if learns else 0,
        "selection_rule": selection_rule(trainer),
        "num_classes": trainer.num_classes,
        "metrics": trainer.evaluation.results,
        "losses": trainer.losses,
        "history": trainer.history,
        "classnames": trainer.classnames,
        "skipped_images": list(trainer.features.skipped),
        "learned": {
            name: {"sha256": hash_state(state), "bytes": sum(v.nbytes for v in state.values())}
            for name, state in states.items()
        },
        "learned_parameters": learned_parameters(trainer),
        "seconds": {**trainer.clock.so_far(), "total": trainer.clock.total()},
        "world_size": distributed.world_size(),
        "determinism": {
            "seed": cfg.SEED,
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        },
        "precision": trainer.precision.name,
        "device": str(trainer.device),
        "data_fingerprint": trainer.data.fingerprint,
        "data": trainer.data.facts(),
        "files": named_files(trainer.run_cfg),
        "budget": known_budget(type(trainer), trainer.run_cfg),
    }
    if "test" not in trainer.evaluation.results and getattr(dataset, "unlabelled", False):
        facts["untested"] = NO_LABELS
    elif cfg.TEST.NO_TEST:
        facts["untested"] = "TEST.NO_TEST"
    if trainer.extra_tests:
        facts["reading_notes"] = trainer.evaluation.notes
    if trainer.evaluation.scenarios:
        facts["scenarios"] = trainer.evaluation.scenarios
    if hasattr(dataset, "protocol"):
        facts["protocol"] = dataset.protocol
    return facts


def learned_parameters(trainer: Any) -> int:
    """How many numbers a run learns: parameters with gradients; without epochs all of the learned parts."""
    parts = [trainer._models[name] for name in trainer.get_model_names()]
    every = not getattr(trainer, "has_epochs", True)
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad or every)


def is_trained(trainer: Any) -> bool:
    """Whether a trainer, of this project's kind or not, has learned parts and was not told to train for 0 epochs."""
    if not getattr(trainer, "has_epochs", True):
        return bool(trainer.get_model_names())
    epochs = max(getattr(trainer, "start_epoch", 0), getattr(trainer, "max_epoch", 1))
    return bool(trainer.get_model_names()) and epochs > 0


def selection_rule(trainer: Any) -> str:
    """Which weights a run that trained has tested, and by what they were chosen.

    Args:
        trainer: A Dassl trainer after its training, of this project's kind or not.
    """
    names, cfg = trainer.get_model_names(), trainer.cfg
    if not is_trained(trainer):
        return FILE_NOT_RECORDED if names and cfg.MODEL.INIT_WEIGHTS else NOTHING_LEARNED
    if not getattr(trainer, "has_epochs", True) or cfg.TEST.FINAL_MODEL != "best_val":
        return LAST
    folders = [Path(folder) for folder in (cfg.OUTPUT_DIR, cfg.RESUME) if folder]
    if not any(all((folder / name / checkpoint_files.BEST_NAME).is_file() for name in names) for folder in folders):
        return LAST  # Dassl tests the last epoch then, with a warning
    if getattr(trainer, "val_loader", None) is None:
        return BEST_ON_TEST
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    tested = {item.impath for item in getattr(dataset, "test", None) or ()}
    shared = any(item.impath in tested for item in getattr(dataset, "val", None) or ())
    return BEST_ON_TEST if shared else BEST_ON_VAL


def save_predictions(trainer: "CLIPTrainer") -> None:
    """Write `predictions.npz` of the test images into the run's folder, and `features.npz`."""
    folder = Path(trainer.output_dir)
    if "test" in trainer.evaluation.predictions:
        trainer.evaluation.save_predictions(folder, trainer.classnames)
        trainer.features.save(folder, trainer.dm.dataset, ("test", *trainer.cached_splits))


def write_run(trainer: "CLIPTrainer") -> None:
    """Write predictions, then `record.json`: all that a table needs, and the mark that the run is done."""
    trainer.features.gather_skipped()
    facts = config_facts(trainer.run_cfg) | environment.environment_facts() | trainer.record_facts()
    save_predictions(trainer)
    if distributed.is_main():
        records.write_record(trainer.output_dir, facts)
