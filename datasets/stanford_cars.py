"""Stanford Cars: 196 models of cars, 16,185 images.

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization, ICCV Workshops 2013. Paths
begin at the data set's folder (`cars_train/00001.jpg`); names begin with the year ("2012 Audi TTS Coupe").
"""

from .registration import register
from .split_file import SplitFileDataset


@register
class StanfordCars(SplitFileDataset):
    """Models of cars."""

    file = "stanford_cars"
