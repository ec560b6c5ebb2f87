"""Describable Textures (DTD): 47 textures, 5,640 images.

Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi: Describing Textures in the Wild, CVPR 2014. The split is CoOp's own, not one
of the ten official ones.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class DescribableTextures(SplitFileDataset):
    """Textures."""

    file = "dtd"
