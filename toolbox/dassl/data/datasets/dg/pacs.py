"""PACS (Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017), with its published split files."""

from __future__ import annotations

import os

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ImageLists, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class PACS(ImageLists):
    """Four domains, 7 classes: `pacs/images/<domain>/<class>/*`, `pacs/splits/<domain>_{train,crossval}_kfold.txt`."""

    dataset_dir = "pacs"
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    data_url = "https://drive.google.com/uc?id=1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"
    parts = {
        "train_x": ("sources", ("train",)),
        "val": ("sources", ("crossval",)),
        "test": ("targets", ("train", "crossval")),
    }
    first = 1
    damaged = frozenset({"sketch/dog/n02103406_4068-1.png"})

    def _images(self, domain: str) -> str:
        return os.path.join(self.dataset_dir, "images")

    def _list(self, domain: str, split: str) -> str:
        return os.path.join(self.dataset_dir, "splits", f"{domain}_{split}_kfold.txt")
