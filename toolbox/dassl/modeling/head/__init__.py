"""Heads: modules between a backbone and a classifier."""
# ruff: noqa: F401 (offered from here)

from .build import HEAD_REGISTRY, build_head
from .mlp import mlp
