"""Evaluators."""
# ruff: noqa: F401 (offered from here)

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
