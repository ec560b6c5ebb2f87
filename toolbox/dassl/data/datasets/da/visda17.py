"""VisDA-2017 (Peng et al., "VisDA: The Visual Domain Adaptation Challenge", 2017)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dassl.data.datasets.base_dataset import Datum
from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.lists import read_list

from .sources import AdaptationDataset, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class VisDA17(AdaptationDataset):
    """Rendered objects and photographs of 12 classes: `visda17/{train,validation}/image_list.txt`, paths beside it."""

    dataset_dir = "visda17"
    domains = ["synthetic", "real"]
    data_page = "https://github.com/VisionLearningGroup/taskcv-2017-public"
    folders = {"synthetic": "train", "real": "validation"}

    def read(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[Datum]]:
        """Every image of a domain; those of the target are in train_u and in test."""
        return {"train_x": self._read(sources), "train_u": self._read(targets), "test": self._read(targets)}

    def _read(self, names: Sequence[str]) -> list[Datum]:
        folders = [os.path.join(self.dataset_dir, self.folders[name]) for name in names]
        return [
            Datum(os.path.join(folder, path), label, domain, path.split("/")[-2])
            for domain, folder in enumerate(folders)
            for path, label in read_list(os.path.join(folder, "image_list.txt"))
        ]
