"""VLCS (Fang et al., "Unbiased Metric Learning", ICCV 2013), in the release with numbered class folders."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ClassFolders, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class VLCS(ClassFolders):
    """Four domains of 5 classes: `VLCS/<DOMAIN>/{train,crossval,test}/<class>/*`."""

    dataset_dir = "VLCS"
    domains = ["caltech", "labelme", "pascal", "sun"]
    data_url = "https://drive.google.com/uc?id=1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd"
    parts = {
        "train_x": ("sources", ("train",)),
        "val": ("sources", ("crossval",)),
        "test": ("targets", ("test",)),
    }

    def _folder(self, domain: str, split: str) -> str:
        return super()._folder(domain.upper(), split)

    def _classname(self, folder: str) -> str:
        return {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}.get(folder, folder)
