"""Digits-DG (Zhou et al., "Deep Domain-Adversarial Image Generation for Domain Generalisation", AAAI 2020)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import ClassFolders, names_of_the_original

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class DigitsDG(ClassFolders):
    """Four domains of the digits 0 to 9: `digits_dg/<domain>/{train,val}/<class>/*`."""

    dataset_dir = "digits_dg"
    domains = ["mnist", "mnist_m", "svhn", "syn"]
    data_url = "https://drive.google.com/uc?id=15V7EsHfCcfbKgsDmzQKj_DfXt_XYp_P7"
