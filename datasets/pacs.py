"""PACS: 4 domains, 7 classes, 9,991 images of 227x227 pixels.

Li, Yang, Song, Hospedales, "Deeper, Broader and Artier Domain Generalization", ICCV 2017 (arXiv 1710.03077). With the
published lists `{domain}_{train,crossval}_kfold.txt`: train and crossval of the sources, both of a held-out target.
Without lists: the seeded hold-out. One damaged image, `sketch/dog/n02103406_4068-1.png`, is always left out.
"""

from collections.abc import Sequence

from .base import DomainDataset, Layout, register
from .spec import Spec, load_spec
from .split_lists import lists_or_holdout

FAMILIES = (
    {"train": "train_kfold", "val": "crossval_kfold"},
    {"train": "train", "val": "crossval"},
    {"train": "train", "val": "val"},
)


@register
class PACS(DomainDataset):
    """Photo, art painting, cartoon and sketch."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("pacs")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "crossval list"}
        return lists_or_holdout(cfg, self.spec, domains, FAMILIES, parts, heldout=("train", "val"))
