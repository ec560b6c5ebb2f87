"""All trainer classes under one module name."""

from .loops import TrainerX, TrainerXU
from .simple_net import SimpleNet
from .simple_trainer import SimpleTrainer
from .trainer_base import TrainerBase

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]
