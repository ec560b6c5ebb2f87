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
from .domainnet import DomainNet
from .folder_domains import FolderDomains
from .icons import Icons
from .imagenet import ImageNet
from .office_home import OfficeHome, OfficeHomeDG
from .pacs import PACS
from .vlcs import VLCS

__all__ = [
    "DomainDataset",
    "DomainNet",
    "FolderDomains",
    "Icons",
    "ImageNet",
    "Layout",
    "OfficeHome",
    "OfficeHomeDG",
    "PACS",
    "PlainDataset",
    "VLCS",
    "add_config",
    "register",
]
