"""Caltech 101: 100 classes of things, 8,242 images.

Fei-Fei, Fergus, Perona: Learning Generative Visual Models from Few Training Examples, CVPR Workshops 2004.
`BACKGROUND_Google` and `Faces_easy` are left out; labels follow the case-sensitive order of the folders, so that face
is 0 and airplane 4.
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class Caltech101(SplitFileDataset):
    """Things of 100 kinds."""

    file = "caltech101"
