"""The configuration tree and its helpers."""

from __future__ import annotations

from yacs.config import CfgNode

from .defaults import _C as cfg_default


def get_cfg_default() -> CfgNode:
    """Returns an unfrozen deep copy of the default tree, ready for a plugin's own nodes."""
    cfg = cfg_default.clone()
    cfg.defrost()
    return cfg


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Removes, in place, the nodes of `cfg.TRAINER` that belong to other trainers.

    Args:
        cfg: The configuration, frozen or not.
        trainer: Registry name of the trainer; empty means `cfg.TRAINER.NAME`.
    """
    keep = {"NAME", (trainer or cfg.TRAINER.NAME).upper()}
    for key in [key for key in cfg.TRAINER if key not in keep]:
        cfg.TRAINER.pop(key, None)
