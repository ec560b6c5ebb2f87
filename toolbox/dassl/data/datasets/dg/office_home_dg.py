"""Office-Home (Venkateswara et al., CVPR 2017) with a training and a validation part in each domain."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ClassFolders, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class OfficeHomeDG(ClassFolders):
    """Four domains of 65 classes: `office_home_dg/<domain>/{train,val}/<class>/*`."""

    dataset_dir = "office_home_dg"
    domains = ["art", "clipart", "product", "real_world"]
    data_url = "https://drive.google.com/uc?id=1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa"
