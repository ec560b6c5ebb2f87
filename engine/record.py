"""What a trainer knows of its run's record; the rest follows from the configuration and the machine."""

from typing import TYPE_CHECKING, Any

import torch

from dassl_clip.clip.weights import hash_state
from dassl_clip.results import environment, records

from . import distributed
from .fingerprint import config_facts, named_files

if TYPE_CHECKING:
    from .trainer import CLIPTrainer


def trainer_facts(trainer: "CLIPTrainer") -> dict[str, Any]:
    """The entries of a record that hold for every method."""
    dataset, cfg, names = trainer.dm.dataset, trainer.cfg, trainer.get_model_names()
    states = {name: trainer._models[name].state_dict() for name in names}
    facts = {
        "prompt": trainer.prompt,
        "backbone": trainer.backbone.describe(),
        "input": {key: cfg.INPUT[key] for key in ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD")},
        "num_train": len(dataset.train_x) if names and trainer.trains_on_labels else 0,
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
    }
    if not names:
        facts["selection_rule"] = "none"
    if trainer.extra_tests:
        facts["reading_notes"] = trainer.evaluation.notes
    if hasattr(dataset, "protocol"):
        facts["protocol"] = dataset.protocol
    return facts


def write_run(trainer: "CLIPTrainer") -> None:
    """Write predictions, then `record.json`: all that a table needs, and the mark that the run is done."""
    trainer.features.gather_skipped()
    facts = config_facts(trainer.run_cfg) | environment.environment_facts() | trainer.record_facts()
    trainer.save_predictions()
    if distributed.is_main():
        records.write_record(trainer.output_dir, facts)
