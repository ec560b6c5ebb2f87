"""Trainers of domain generalisation."""

from .vanilla import Vanilla

__all__ = ["Vanilla"]
