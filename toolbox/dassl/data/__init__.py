"""Data sets, transforms, samplers and loaders."""
# ruff: noqa: F401 (offered from here)

from .data_manager import DataManager, DatasetWrapper
