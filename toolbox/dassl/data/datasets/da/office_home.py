"""Office-Home (Venkateswara et al., "Deep Hashing Network for Unsupervised Domain Adaptation", CVPR 2017)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.utils.on_demand import import_on_demand

from .sources import DomainFolders

__getattr__ = import_on_demand(
    __name__,
    osp="os.path",
    listdir_nohidden="dassl.utils:listdir_nohidden",
    Datum="..base_dataset:Datum",
    DatasetBase="..base_dataset:DatasetBase",
)


@DATASET_REGISTRY.register()
class OfficeHome(DomainFolders):
    """Four domains of 65 classes: `office_home/<domain>/<class>/*`."""

    dataset_dir = "office_home"
    domains = ["art", "clipart", "product", "real_world"]
    data_page = "https://www.hemanthdv.org/officeHomeDataset.html"
