"""Trainers of unsupervised domain adaptation."""
# ruff: noqa: F401 (offered from here)

from .source_only import SourceOnly
