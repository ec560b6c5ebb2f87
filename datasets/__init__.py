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

from .base import DomainDataset, Layout, PlainDataset, add_config, register
from .caltech101 import Caltech101
from .domainnet import DomainNet
from .dtd import DescribableTextures
from .eurosat import EuroSAT
from .fgvc_aircraft import FGVCAircraft
from .folder_classes import FolderClasses
from .folder_domains import FolderDomains
from .food101 import Food101
from .icons import Icons
from .imagenet import ImageNet
from .imagenet_variants import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2
from .manifest import Manifest
from .mini_domainnet import miniDomainNet
from .office_home import OfficeHome, OfficeHomeDG
from .oxford_flowers import OxfordFlowers
from .oxford_pets import OxfordPets
from .pacs import PACS
from .stanford_cars import StanfordCars
from .sun397 import SUN397
from .ucf101 import UCF101
from .vlcs import VLCS

__all__ = [
    "add_config",
    "Caltech101",
    "DescribableTextures",
    "DomainDataset",
    "DomainNet",
    "EuroSAT",
    "FGVCAircraft",
    "FolderClasses",
    "FolderDomains",
    "Food101",
    "Icons",
    "ImageNet",
    "ImageNetA",
    "ImageNetR",
    "ImageNetSketch",
    "ImageNetV2",
    "Layout",
    "Manifest",
    "miniDomainNet",
    "OfficeHome",
    "OfficeHomeDG",
    "OxfordFlowers",
    "OxfordPets",
    "PACS",
    "PlainDataset",
    "register",
    "StanfordCars",
    "SUN397",
    "UCF101",
    "VLCS",
]
