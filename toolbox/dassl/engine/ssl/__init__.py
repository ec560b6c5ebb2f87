"""Trainers of semi-supervised learning."""

from .fixmatch import FixMatch

__all__ = ["FixMatch"]
