"""Trainers of domain generalisation."""
# ruff: noqa: F401 (offered from here)

from .crossgrad import CrossGrad
from .daeldg import DAELDG
from .domain_mix import DomainMix
from .vanilla import Vanilla
