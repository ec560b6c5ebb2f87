"""EuroSAT: 10 kinds of land, 27,000 satellite images of 64x64 pixels.

Helber, Bischke, Dengel, Borth: EuroSAT, IEEE JSTARS 2019 (arXiv 1709.00029). Names are CoOp's ("Annual Crop Land" for
`AnnualCrop`).
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class EuroSAT(SplitFileDataset):
    """Kinds of land seen from above."""

    file = "eurosat"
