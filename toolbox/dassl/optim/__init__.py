"""Optimizers and learning-rate schedules."""
# ruff: noqa: F401 (offered from here)

from .lr_scheduler import build_lr_scheduler
from .optimizer import build_optimizer
