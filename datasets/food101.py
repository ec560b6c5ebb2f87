"""Food-101: 101 dishes, 101,000 images.

Bossard, Guillaumin, Van Gool: Food-101, ECCV 2014. The split is CoOp's own; cheese_plate is 16 and cheesecake 17,
which other lists have the other way round.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class Food101(SplitFileDataset):
    """Dishes."""

    file = "food101"
