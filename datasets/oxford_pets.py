"""Oxford Pets: 37 breeds, 7,349 images.

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012. A few files called .jpg are GIFs; PIL reads them.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class OxfordPets(SplitFileDataset):
    """Breeds of cats and dogs."""

    file = "oxford_pets"
