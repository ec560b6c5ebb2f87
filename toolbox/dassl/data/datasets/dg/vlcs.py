"""VLCS (Fang et al., "Unbiased Metric Learning", ICCV 2013), in the release with numbered class folders."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY
from dassl.data.datasets.download import require_folder
from dassl.utils.on_demand import import_on_demand

from .folders import number_classes, read_domains

__getattr__ = import_on_demand(__name__, osp="os.path", glob="glob", listdir_nohidden="dassl.utils:listdir_nohidden")

CLASSES = {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}


@DATASET_REGISTRY.register()
class VLCS(DatasetBase):
    """Four domains of 5 classes: `VLCS/<DOMAIN>/{train,crossval,test}/<class>/*`.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    dataset_dir = "VLCS"
    domains = ["caltech", "labelme", "pascal", "sun"]
    data_url = "https://drive.google.com/uc?id=1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd"

    def __init__(self, cfg) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        if require_folder(self.dataset_dir, self.data_url):
            self.download_data(self.data_url, os.path.join(root, "vlcs.zip"))
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        asked = [*cfg.DATASET.SOURCE_DOMAINS, *cfg.DATASET.TARGET_DOMAINS]
        splits = ("train", "crossval", "test")
        self._labels = number_classes(self._folder(name, split) for name in asked for split in splits)
        super().__init__(
            train_x=self._read(cfg.DATASET.SOURCE_DOMAINS, "train"),
            val=self._read(cfg.DATASET.SOURCE_DOMAINS, "crossval"),
            test=self._read(cfg.DATASET.TARGET_DOMAINS, "test"),
        )

    def _folder(self, name: str, split: str) -> str:
        return os.path.join(self.dataset_dir, name.upper(), split)

    def _read(self, names: Sequence[str], split: str) -> list[Datum]:
        return read_domains(
            names,
            lambda name: [self._folder(name, split)],
            lambda folder: CLASSES.get(folder, folder),
            self._labels,
        )
