"""PACS: 4 domains, 7 classes, 9,991 images of 227x227 pixels.

Li, Yang, Song, Hospedales, "Deeper, Broader and Artier Domain Generalization", ICCV 2017 (arXiv 1710.03077).
With the published lists `{domain}_{train,crossval}_kfold.txt`: train and crossval of the sources, both of a held-out
target. Without lists: the seeded hold-out. One damaged image, `sketch/dog/n02103406_4068-1.png`, is always left out.
"""

from collections.abc import Sequence

from .base import DomainDataset, Layout, register, split_seed
from .layouts import candidates, check_lists, find_lists, holdout_layout, list_layout, pick_domains
from .spec import Spec, load_spec

SUFFIXES = {"train": ("train_kfold", "train"), "val": ("crossval_kfold", "crossval", "val")}


@register
class PACS(DomainDataset):
    """Photo, art painting, cartoon and sketch."""

    def make_spec(self, cfg) -> Spec:
        return load_spec("pacs")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        found = candidates(cfg, self.spec)
        lists = {folder: find_lists(folder, self.spec, SUFFIXES) for folder, _ in found}
        folder, matches = next((entry for entry in found if lists[entry[0]]), found[0])
        folders = pick_domains(folder, matches, domains, self.spec)
        if not lists[folder]:
            return holdout_layout(folder, folders, self.spec, split_seed(cfg))
        check_lists(lists[folder], domains, list(SUFFIXES), self.spec)
        parts = {"train": "train_kfold", "val": "crossval_kfold"}
        return list_layout(folders, lists[folder], self.spec, parts, heldout=("train", "val"))
