"""Data sets by name."""

from . import da, dg
from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset
from .da import DomainNet, Office31, OfficeHome, VisDA17, miniDomainNet
from .dg import PACS, VLCS, DigitsDG, OfficeHomeDG

__all__ = [
    "DATASET_REGISTRY",
    "DatasetBase",
    "Datum",
    "DigitsDG",
    "DomainNet",
    "Office31",
    "OfficeHome",
    "OfficeHomeDG",
    "PACS",
    "VLCS",
    "VisDA17",
    "build_dataset",
    "da",
    "dg",
    "miniDomainNet",
]
