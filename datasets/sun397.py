"""SUN397: 397 scenes, 39,700 listed images.

Xiao, Hays, Ehinger, Oliva, Torralba: SUN Database, CVPR 2010. Names are the folders from the inside out:
`a/apartment_building/outdoor` is "outdoor apartment_building".
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class SUN397(SplitFileDataset):
    """Indoor and outdoor scenes."""

    file = "sun397"
