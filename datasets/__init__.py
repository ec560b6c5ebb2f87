"""Data sets: loaders that list files and labels, registered in Dassl's `DATASET_REGISTRY` by importing this package."""

try:
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum  # noqa: F401
except ImportError as error:
    if error.name is None or error.name.split(".")[0] != "dassl":
        raise
    raise ModuleNotFoundError(
        "dassl_clip.datasets needs the Dassl toolbox, and no complete package `dassl` is installed: run "
        "`pip install ./toolbox` in the checkout of dassl-clip, or install KaiyangZhou/Dassl.pytorch",
        name=error.name,
    ) from error

from .base import Layout, ListedDataset, register
from .coop_sets import (
    SUN397,
    UCF101,
    Caltech101,
    DescribableTextures,
    EuroSAT,
    FGVCAircraft,
    Food101,
    OxfordFlowers,
    OxfordPets,
    StanfordCars,
)
from .domain_sets import PACS, VLCS, DomainNet, OfficeHome, OfficeHomeDG, miniDomainNet
from .folder_sets import CUBPaintings, DigitsDG, NICOpp, Office31, VisDA17
from .icons import Icons
from .imagenet import ImageNet, ImageNetA, ImageNetC, ImageNetR, ImageNetSketch, ImageNetV2
from .manifest import Manifest
from .options import add_config
from .own_folders import FolderClasses, FolderDomains
from .terra_incognita import TerraIncognita

__all__ = [
    "add_config",
    "Caltech101",
    "CUBPaintings",
    "DescribableTextures",
    "DigitsDG",
    "DomainNet",
    "EuroSAT",
    "FGVCAircraft",
    "FolderClasses",
    "FolderDomains",
    "Food101",
    "Icons",
    "ImageNet",
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetSketch",
    "ImageNetV2",
    "Layout",
    "ListedDataset",
    "Manifest",
    "miniDomainNet",
    "NICOpp",
    "Office31",
    "OfficeHome",
    "OfficeHomeDG",
    "OxfordFlowers",
    "OxfordPets",
    "PACS",
    "register",
    "StanfordCars",
    "SUN397",
    "TerraIncognita",
    "UCF101",
    "VisDA17",
    "VLCS",
]
