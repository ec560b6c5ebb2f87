"""Office-31 (Saenko et al., "Adapting Visual Category Models to New Domains", ECCV 2010)."""

from __future__ import annotations

from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.domains import names_of_the_original

from .office_home import OfficeHome

__getattr__ = names_of_the_original(__name__)


@DATASET_REGISTRY.register()
class Office31(OfficeHome):
    """Three domains of 31 classes: `office31/<domain>/<class>/*`, read as Office-Home."""

    dataset_dir = "office31"
    domains = ["amazon", "webcam", "dslr"]
    data_page = "https://faculty.cc.gatech.edu/~judy/domainadapt/"
