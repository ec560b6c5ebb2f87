"""Trainers."""

from . import da, dg, ssl
from .build import TRAINER_REGISTRY, build_trainer
from .da import SourceOnly
from .dg import DAELDG, CrossGrad, DomainMix, Vanilla
from .ssl import FixMatch
from .trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__all__ = [
    "CrossGrad",
    "DAELDG",
    "DomainMix",
    "FixMatch",
    "SimpleNet",
    "SimpleTrainer",
    "SourceOnly",
    "TRAINER_REGISTRY",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "Vanilla",
    "build_trainer",
    "da",
    "dg",
    "ssl",
]
