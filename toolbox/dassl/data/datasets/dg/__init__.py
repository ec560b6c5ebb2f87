"""Data sets of domain generalisation: train and val from the source domains, test from the target domains."""
# ruff: noqa: F401 (offered from here)

from .digits_dg import DigitsDG
from .office_home_dg import OfficeHomeDG
from .pacs import PACS
from .vlcs import VLCS
