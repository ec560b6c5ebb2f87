"""Digits-DG (Zhou et al., "Deep Domain-Adversarial Image Generation for Domain Generalisation", AAAI 2020)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.utils.on_demand import import_on_demand

from .folders import TrainValDataset

__getattr__ = import_on_demand(
    __name__,
    osp="os.path",
    glob="glob",
    listdir_nohidden="dassl.utils:listdir_nohidden",
    Datum="..base_dataset:Datum",
    DatasetBase="..base_dataset:DatasetBase",
)


@DATASET_REGISTRY.register()
class DigitsDG(TrainValDataset):
    """Four domains of the digits 0 to 9: `digits_dg/<domain>/{train,val}/<class>/*`."""

    dataset_dir = "digits_dg"
    domains = ["mnist", "mnist_m", "svhn", "syn"]
    data_url = "https://drive.google.com/uc?id=15V7EsHfCcfbKgsDmzQKj_DfXt_XYp_P7"
