"""DomainNet (Peng et al., "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019)."""

from __future__ import annotations

import os

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ImageLists, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class DomainNet(ImageLists):
    """Six domains of 345 classes, by the lists in `domainnet/splits`; val is the test part of the sources."""

    dataset_dir = "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    data_page = "https://ai.bu.edu/M3SDA/"
    split_dir = "splits"
    parts = {
        "train_x": ("sources", ("train",)),
        "train_u": ("targets", ("train",)),
        "val": ("sources", ("test",)),
        "test": ("targets", ("test",)),
    }

    def _list(self, domain: str, split: str) -> str:
        return os.path.join(self.dataset_dir, self.split_dir, f"{domain}_{split}.txt")
