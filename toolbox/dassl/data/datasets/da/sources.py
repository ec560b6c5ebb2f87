"""What the data sets of domain adaptation share: one folder a class in one folder a domain, or lists of each domain."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.dg.folders import number_classes, read_domains
from dassl.data.datasets.download import require_folder
from dassl.data.datasets.lists import read_list
from dassl.utils import listdir_nohidden
from dassl.utils.on_demand import import_on_demand


def names_of_the_original(module: str) -> Callable:
    """A module's `__getattr__` for what the original's module of that name imports, and this one does not need."""
    return import_on_demand(
        module,
        osp="os.path",
        listdir_nohidden="dassl.utils:listdir_nohidden",
        Datum="..base_dataset:Datum",
        DatasetBase="..base_dataset:DatasetBase",
    )


class AdaptationDataset(DatasetBase):
    """Labelled source domains and unlabelled target domains.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    data_page = ""  # where the images are published

    def __init__(self, cfg) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        require_folder(self.dataset_dir, self.data_page, fetchable=False)
        sources, targets = cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        self.check_input_domains(sources, targets)
        super().__init__(**self.read(sources, targets))

    def read(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[Datum]]:
        """The lists that `DatasetBase` takes, by their names."""
        raise NotImplementedError


class DomainFolders(AdaptationDataset):
    """The layout `<domain>/<class>/*`; every image of the targets is in train_u and in test."""

    def read(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[Datum]]:
        """The images of the class folders; class names in lower case."""
        self._labels = number_classes(self._folder(name) for name in [*sources, *targets])
        return {"train_x": self._read(sources), "train_u": self._read(targets), "test": self._read(targets)}

    def _read(self, names: Sequence[str]) -> list[Datum]:
        return read_domains(names, lambda name: [self._folder(name)], str.lower, self._labels)

    def _folder(self, domain: str) -> str:
        """The folder of a domain; that of the published archive may be written in another way ("Real World")."""
        written = {name.lower().replace(" ", "_"): name for name in listdir_nohidden(self.dataset_dir)}
        return os.path.join(self.dataset_dir, written.get(domain, domain))


class DomainLists(AdaptationDataset):
    """Images of `<domain>/<class>/*` in the published lists `<split_dir>/<domain>_{train,test}.txt`."""

    split_dir = "splits"

    def _read(self, names: Sequence[str], split: str) -> list[Datum]:
        return [
            Datum(os.path.join(self.dataset_dir, path), label, domain, path.split("/")[-2])
            for domain, name in enumerate(names)
            for path, label in read_list(os.path.join(self.dataset_dir, self.split_dir, f"{name}_{split}.txt"))
        ]
