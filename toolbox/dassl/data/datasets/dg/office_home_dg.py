"""Office-Home (Venkateswara et al., CVPR 2017) with a training and a validation part in each domain."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY

from .folders import TrainValDataset


@DATASET_REGISTRY.register()
class OfficeHomeDG(TrainValDataset):
    """Four domains of 65 classes: `office_home_dg/<domain>/{train,val}/<class>/*`."""

    dataset_dir = "office_home_dg"
    domains = ["art", "clipart", "product", "real_world"]
    data_url = "https://drive.google.com/uc?id=1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa"
