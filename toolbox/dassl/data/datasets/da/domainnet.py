"""DomainNet (Peng et al., "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from dassl.data.datasets.base_dataset import Datum
from dassl.data.datasets.build import DATASET_REGISTRY

from .sources import DomainLists, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class DomainNet(DomainLists):
    """Six domains of 345 classes, by the lists in `domainnet/splits`; val is the test part of the sources."""

    dataset_dir = "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    data_page = "https://ai.bu.edu/M3SDA/"

    def read(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[Datum]]:
        """Training parts for training, test parts for validation and testing."""
        return {
            "train_x": self._read(sources, "train"),
            "train_u": self._read(targets, "train"),
            "val": self._read(sources, "test"),
            "test": self._read(targets, "test"),
        }
