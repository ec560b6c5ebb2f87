"""What the DG data sets share: one folder a class, inside one folder a split, inside one folder a domain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.download import require_folder
from dassl.utils import listdir_nohidden
from dassl.utils.errors import CheckError, MissingFileError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def read_domains(
    names: Sequence[str],
    folders_of: Callable[[str], Sequence[str]],
    classname: Callable[[str], str],
    labels: Mapping[str, int],
) -> list[Datum]:
    """The images of several domains, in sorted order; a domain's label is its place in `names`.

    Args:
        names: The domains asked for.
        folders_of: The folders that a domain's images lie in, each with one folder a class.
        classname: The class name for a folder's name.
        labels: The label of each class folder, see `number_classes`.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A folder holds no image.
    """
    return [
        Datum(path, labels[class_folder], domain, classname(class_folder))
        for domain, name in enumerate(names)
        for folder in folders_of(name)
        for class_folder, paths in _list_classes(folder).items()
        for path in paths
    ]


def number_classes(folders: Iterable[str]) -> dict[str, int]:
    """Labels of the class folders with images inside several folders, in sorted order.

    A class that one domain lacks moves no label of another domain.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A folder holds no image.
    """
    names = sorted({name for folder in folders for name in _list_classes(folder)})
    return {name: label for label, name in enumerate(names)}


def _list_classes(folder: str) -> dict[str, list[str]]:
    """Image files of each class folder that has any, in sorted order."""
    if not os.path.isdir(folder):
        raise MissingFileError(f'There is no folder "{folder}", which should hold one folder for each class')
    names = [name for name in listdir_nohidden(folder) if os.path.isdir(os.path.join(folder, name))]
    images = {
        name: [
            os.path.join(folder, name, file)
            for file in listdir_nohidden(os.path.join(folder, name))
            if file.lower().endswith(EXTENSIONS)
        ]
        for name in names
    }
    if not any(images.values()):
        raise CheckError(f'No image lies in the class folders of "{folder}" ({len(names)} folders, as {names[:5]})')
    return {name: files for name, files in images.items() if files}


class TrainValDataset(DatasetBase):
    """The layout `<domain>/{train,val}/<class>/*`: train and val of the sources, both of the targets for testing.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    data_url = ""

    def __init__(self, cfg) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        if require_folder(self.dataset_dir, self.data_url):
            self.download_data(self.data_url, os.path.join(root, f"{os.path.basename(self.dataset_dir)}.zip"))
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        asked = [*cfg.DATASET.SOURCE_DOMAINS, *cfg.DATASET.TARGET_DOMAINS]
        self._labels = number_classes(folder for name in asked for folder in self._folders(name, ["train", "val"]))
        super().__init__(
            train_x=self._read(cfg.DATASET.SOURCE_DOMAINS, ["train"]),
            val=self._read(cfg.DATASET.SOURCE_DOMAINS, ["val"]),
            test=self._read(cfg.DATASET.TARGET_DOMAINS, ["train", "val"]),
        )

    def _folders(self, name: str, splits: Sequence[str]) -> list[str]:
        return [os.path.join(self.dataset_dir, name, split) for split in splits]

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        return read_domains(names, lambda name: self._folders(name, splits), str.lower, self._labels)
