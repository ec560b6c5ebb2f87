"""Trainers of semi-supervised learning."""
# ruff: noqa: F401 (offered from here)

from .fixmatch import FixMatch
