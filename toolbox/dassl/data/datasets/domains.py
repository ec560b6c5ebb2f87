"""What the data sets of several domains share: one folder a class in one folder a domain, or published lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.download import require_folder
from dassl.utils import listdir_nohidden
from dassl.utils.errors import CheckError, MissingFileError
from dassl.utils.on_demand import import_on_demand

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def names_of_the_original(module: str) -> Callable:
    """A module's `__getattr__` for what the original's module of that name imports, and this one does not need."""
    return import_on_demand(
        module,
        osp="os.path",
        glob="glob",
        listdir_nohidden="dassl.utils:listdir_nohidden",
        Datum="..base_dataset:Datum",
        DatasetBase="..base_dataset:DatasetBase",
    )


class DomainDataset(DatasetBase):
    """Lists of images of the domains that a configuration asks for; a domain's label is its place among them.

    Args:
        cfg: The configuration; reads DATASET.ROOT, SOURCE_DOMAINS and TARGET_DOMAINS.
    """

    data_url = ""  # of the archive, which the toolbox can fetch; or
    data_page = ""  # where the images are published
    # Lists of the data set, each with the domains (sources or targets) and the splits that it is read from.
    parts: Mapping[str, tuple[str, Sequence[str]]] = {
        "train_x": ("sources", ("train",)),
        "val": ("sources", ("val",)),
        "test": ("targets", ("train", "val")),
    }

    def __init__(self, cfg) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        if require_folder(self.dataset_dir, self.data_url or self.data_page, fetchable=bool(self.data_url)):
            archive = f"{os.path.basename(self.dataset_dir).lower()}.zip"
            self.download_data(self.data_url, os.path.join(root, archive))
        sources, targets = cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        self.check_input_domains(sources, targets)
        self._asked = [*sources, *targets]
        domains = {"sources": sources, "targets": targets}
        super().__init__(**{part: self._read(domains[side], splits) for part, (side, splits) in self.parts.items()})

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        """The images of some splits of some domains."""
        raise NotImplementedError


class ClassFolders(DomainDataset):
    """The layout `<domain>/<split>/<class>/*`, in sorted order.

    Classes are numbered over all domains that are asked for: one that a domain lacks moves no label of another.
    """

    def _folder(self, domain: str, split: str) -> str:
        return os.path.join(self.dataset_dir, domain, split)

    def _classname(self, folder: str) -> str:
        return folder.lower()

    @cached_property
    def _labels(self) -> dict[str, int]:
        splits = {split for _, splits in self.parts.values() for split in splits}
        folders = [self._folder(domain, split) for domain in self._asked for split in sorted(splits)]
        return {name: label for label, name in enumerate(sorted({name for f in folders for name in list_classes(f)}))}

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        return [
            Datum(path, self._labels[folder], domain, self._classname(folder))
            for domain, name in enumerate(names)
            for split in splits
            for folder, paths in list_classes(self._folder(name, split)).items()
            for path in paths
        ]


class ImageLists(DomainDataset):
    """Images of class folders in published lists; a subclass says where a domain's images and its list lie."""

    first = 0  # the smallest label in the lists
    damaged: frozenset[str] = frozenset()  # entries that are left out

    def _images(self, domain: str) -> str:
        return self.dataset_dir

    def _list(self, domain: str, split: str) -> str:
        raise NotImplementedError

    def _read(self, names: Sequence[str], splits: Sequence[str]) -> list[Datum]:
        return [
            Datum(os.path.join(self._images(name), path), label, domain, path.split("/")[-2])
            for domain, name in enumerate(names)
            for split in splits
            for path, label in read_list(self._list(name, split), self.first)
            if path not in self.damaged
        ]


def list_classes(folder: str) -> dict[str, list[str]]:
    """Image files of each class folder that has any, in sorted order.

    Raises:
        FileNotFoundError: The folder is missing.
        ValueError: It holds no image.
    """
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


def read_list(fpath: str, first: int) -> list[tuple[str, int]]:
    """Paths with "/" (which may hold blanks) and labels from 0 of a list: one line an image, its path and its label.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line does not name an image in the folder of its class, and a label of at least `first`.
    """
    if not os.path.isfile(fpath):
        raise MissingFileError(f'There is no split file "{fpath}"')
    entries = []
    with open(fpath, encoding="utf-8") as file:
        for line in filter(None, map(str.strip, file)):
            path, _, label = line.rpartition(" ")
            if not label.isdigit() or int(label) < first or "/" not in path:
                raise CheckError(f'"{fpath}": expected "class/image label", label from {first}, but got "{line}"')
            entries.append((path, int(label) - first))
    return entries
