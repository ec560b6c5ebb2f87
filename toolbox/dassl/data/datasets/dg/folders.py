"""What the DG data sets share: one folder a class, inside one folder a split, inside one folder a domain."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.utils import listdir_nohidden
from dassl.utils.errors import CheckError, MissingFileError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def read_domains(
    names: Sequence[str], folders_of: Callable[[str], Sequence[str]], classname: Callable[[str], str]
) -> list[Datum]:
    """The images of several domains, in sorted order; a domain's label is its place in `names`.

    Args:
        names: The domains asked for.
        folders_of: The folders that a domain's images lie in, each with one folder a class.
        classname: The class name for a folder's name.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A folder holds no image.
    """
    return [
        item
        for domain, name in enumerate(names)
        for folder in folders_of(name)
        for item in _read_classes(folder, domain, classname)
    ]


def _read_classes(folder: str, domain: int, classname: Callable[[str], str]) -> list[Datum]:
    if not os.path.isdir(folder):
        raise MissingFileError(f'There is no folder "{folder}", which should hold one folder for each class')
    classes = [name for name in listdir_nohidden(folder) if os.path.isdir(os.path.join(folder, name))]
    items = [
        Datum(os.path.join(folder, name, file), label, domain, classname(name))
        for label, name in enumerate(classes)
        for file in listdir_nohidden(os.path.join(folder, name))
        if file.lower().endswith(EXTENSIONS)
    ]
    if not items:
        raise CheckError(f'No image lies in the class folders of "{folder}" (classes found: {classes})')
    return items


class TrainValDataset(DatasetBase):
    """The layout `<domain>/{train,val}/<class>/*`: train and val of the sources, both of the targets for testing.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    data_url = ""

    def __init__(self, cfg) -> None:
        from dassl.data.datasets.download import require_folder

        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        if require_folder(self.dataset_dir, self.data_url):
            self.download_data(self.data_url, os.path.join(root, f"{os.path.basename(self.dataset_dir)}.zip"))
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        super().__init__(
            train_x=self._read(cfg.DATASET.SOURCE_DOMAINS, ["train"]),
            val=self._read(cfg.DATASET.SOURCE_DOMAINS, ["val"]),
            test=self._read(cfg.DATASET.TARGET_DOMAINS, ["train", "val"]),
        )

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        return read_domains(
            names, lambda name: [os.path.join(self.dataset_dir, name, split) for split in splits], str.lower
        )
