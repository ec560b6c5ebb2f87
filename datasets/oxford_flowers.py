"""Oxford Flowers: 102 kinds, 8,189 images.

Nilsback, Zisserman: Automated Flower Classification over a Large Number of Classes, ICVGIP 2008. The split is CoOp's
own, not that of `setid.mat`.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class OxfordFlowers(SplitFileDataset):
    """Kinds of flowers."""

    file = "oxford_flowers"
