"""Data sets by name."""
# ruff: noqa: F401 (offered from here)

from . import da, dg
from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset
from .da import DomainNet, Office31, OfficeHome, VisDA17, miniDomainNet
from .dg import PACS, VLCS, DigitsDG, OfficeHomeDG
