"""miniDomainNet (Zhou et al., "Domain Adaptive Ensemble Learning", IEEE TIP 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from dassl.data.datasets.base_dataset import Datum
from dassl.data.datasets.build import DATASET_REGISTRY

from .sources import DomainLists, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class miniDomainNet(DomainLists):
    """Four domains and 126 classes of DomainNet, by the lists in `domainnet/splits_mini`; no val."""

    dataset_dir = "domainnet"
    domains = ["clipart", "painting", "real", "sketch"]
    data_page = "https://ai.bu.edu/M3SDA/"
    split_dir = "splits_mini"

    def read(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[Datum]]:
        """Training parts for training, the test part of the targets for testing."""
        return {
            "train_x": self._read(sources, "train"),
            "train_u": self._read(targets, "train"),
            "test": self._read(targets, "test"),
        }
