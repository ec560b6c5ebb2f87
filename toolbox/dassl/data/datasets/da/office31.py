"""Office-31 (Saenko et al., "Adapting Visual Category Models to New Domains", ECCV 2010)."""

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
class Office31(DomainFolders):
    """Three domains of 31 classes: `office31/<domain>/<class>/*`."""

    dataset_dir = "office31"
    domains = ["amazon", "webcam", "dslr"]
    data_page = "https://faculty.cc.gatech.edu/~judy/domainadapt/"
