"""Office-Home (Venkateswara et al., "Deep Hashing Network for Unsupervised Domain Adaptation", CVPR 2017)."""

from __future__ import annotations

import os

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ClassFolders, names_of_the_original
from dassl.utils import listdir_nohidden

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class OfficeHome(ClassFolders):
    """Four domains of 65 classes: `office_home/<domain>/<class>/*`; targets are in train_u and test whole."""

    dataset_dir = "office_home"
    domains = ["art", "clipart", "product", "real_world"]
    data_page = "https://www.hemanthdv.org/officeHomeDataset.html"
    parts = {"train_x": ("sources", ("",)), "train_u": ("targets", ("",)), "test": ("targets", ("",))}

    def _folder(self, domain: str, split: str) -> str:
        """The folder of a domain; that of the published archive may be written in another way ("Real World")."""
        written = {name.lower().replace(" ", "_"): name for name in listdir_nohidden(self.dataset_dir)}
        return os.path.join(self.dataset_dir, written.get(domain, domain))
