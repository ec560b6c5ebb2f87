"""Trainers of domain generalisation."""

from .crossgrad import CrossGrad
from .daeldg import DAELDG
from .domain_mix import DomainMix
from .vanilla import Vanilla

__all__ = ["CrossGrad", "DAELDG", "DomainMix", "Vanilla"]
