"""Office-Home (Venkateswara et al., "Deep Hashing Network for Unsupervised Domain Adaptation", CVPR 2017)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY

from .sources import DomainFolders, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class OfficeHome(DomainFolders):
    """Four domains of 65 classes: `office_home/<domain>/<class>/*`."""

    dataset_dir = "office_home"
    domains = ["art", "clipart", "product", "real_world"]
    data_page = "https://www.hemanthdv.org/officeHomeDataset.html"
