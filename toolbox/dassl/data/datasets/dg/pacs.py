"""PACS (Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017), with its published split files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.download import require_folder
from dassl.data.datasets.lists import read_list
from dassl.utils.on_demand import import_on_demand

__getattr__ = import_on_demand(__name__, osp="os.path")

DAMAGED = {"sketch/dog/n02103406_4068-1.png"}


@DATASET_REGISTRY.register()
class PACS(DatasetBase):
    """Four domains of 7 classes: `pacs/images/<domain>/<class>/*`, `pacs/splits/<domain>_{train,crossval}_kfold.txt`.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    dataset_dir = "pacs"
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    data_url = "https://drive.google.com/uc?id=1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"

    def __init__(self, cfg) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_dir = os.path.join(self.dataset_dir, "splits")
        if require_folder(self.dataset_dir, self.data_url):
            self.download_data(self.data_url, os.path.join(root, "pacs.zip"))
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        super().__init__(
            train_x=self._read(cfg.DATASET.SOURCE_DOMAINS, ["train"]),
            val=self._read(cfg.DATASET.SOURCE_DOMAINS, ["crossval"]),
            test=self._read(cfg.DATASET.TARGET_DOMAINS, ["train", "crossval"]),
        )

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        return [
            Datum(os.path.join(self.image_dir, path), label, domain, path.split("/")[-2])
            for domain, name in enumerate(names)
            for split in splits
            for path, label in read_list(os.path.join(self.split_dir, f"{name}_{split}_kfold.txt"), first=1)
            if path not in DAMAGED
        ]
