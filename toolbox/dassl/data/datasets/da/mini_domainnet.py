"""miniDomainNet (Zhou et al., "Domain Adaptive Ensemble Learning", IEEE TIP 2021)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import names_of_the_original

from .domainnet import DomainNet

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class miniDomainNet(DomainNet):
    """Four domains and 126 classes of DomainNet, by the lists in `domainnet/splits_mini`; no val."""

    domains = ["clipart", "painting", "real", "sketch"]
    split_dir = "splits_mini"
    parts = {part: source for part, source in DomainNet.parts.items() if part != "val"}
