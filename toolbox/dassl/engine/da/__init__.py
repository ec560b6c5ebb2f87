"""Trainers of unsupervised domain adaptation."""

from .source_only import SourceOnly

__all__ = ["SourceOnly"]
