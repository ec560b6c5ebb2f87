"""Data sets by name."""

from . import dg
from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset
from .dg import PACS, VLCS, DigitsDG, OfficeHomeDG

__all__ = [
    "DATASET_REGISTRY",
    "DatasetBase",
    "Datum",
    "DigitsDG",
    "OfficeHomeDG",
    "PACS",
    "VLCS",
    "build_dataset",
    "dg",
]
