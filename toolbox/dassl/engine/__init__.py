"""Trainers."""
# ruff: noqa: F401 (offered from here)

from . import da, dg, ssl
from .build import TRAINER_REGISTRY, build_trainer
from .da import SourceOnly
from .dg import DAELDG, CrossGrad, DomainMix, Vanilla
from .ssl import FixMatch
from .trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU
