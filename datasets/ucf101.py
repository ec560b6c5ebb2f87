"""UCF101: 101 actions, the middle frames of 13,320 videos.

Soomro, Zamir, Shah: UCF101, 2012 (arXiv 1212.0402); the middle frame of each video. Labels are those of classInd.txt,
which differ from sorted folders in two pairs; the folder of a class and the name in its files may differ in letter
case.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class UCF101(SplitFileDataset):
    """Actions of people."""

    file = "ucf101"
