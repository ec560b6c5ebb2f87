"""VisDA-2017 (Peng et al., "VisDA: The Visual Domain Adaptation Challenge", 2017)."""

from __future__ import annotations

import os

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ImageLists, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class VisDA17(ImageLists):
    """Rendered objects and photographs of 12 classes: `visda17/{train,validation}/image_list.txt`, paths beside it.

    Every image of the target is in train_u and in test.
    """

    dataset_dir = "visda17"
    domains = ["synthetic", "real"]
    data_page = "https://github.com/VisionLearningGroup/taskcv-2017-public"
    parts = {"train_x": ("sources", ("",)), "train_u": ("targets", ("",)), "test": ("targets", ("",))}

    def _images(self, domain: str) -> str:
        return os.path.join(self.dataset_dir, {"synthetic": "train", "real": "validation"}[domain])

    def _list(self, domain: str, split: str) -> str:
        return os.path.join(self._images(domain), "image_list.txt")
