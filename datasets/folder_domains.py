"""FolderDomains: any tree root/domain/class/image.

DATASET.ROOT is the tree itself. Its domains are the folders that hold class folders with images, sorted. The class
list is `classnames.txt` in the root (one name a line, in label order) or else the union of the class folders of all
domains, sorted; never the classes of the domains a run trains on. A class may be absent from a domain, which gives a
warning.
"""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .base import DomainDataset, Layout, register, split_seed
from .folders import is_image, list_folder, open_root, read_text
from .layouts import holdout_layout
from .spec import Spec, did_you_mean, listed, name_key

logger = logging.getLogger(__name__)

CLASS_FILE = "classnames.txt"


@register
class FolderDomains(DomainDataset):
    """A user's own folders."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        root = open_root(cfg.DATASET.ROOT, "the folders domain/class/image")
        domains = {name: found for name in list_folder(root)[0] if (found := class_folders(root / name))}
        if not domains:
            hint = shape_hint(root)
            if class_folders(root):
                hint += " A tree class/image, without domains, is read by DATASET.NAME FolderClasses."
            raise FileNotFoundError(f"FolderDomains: no domain found in {root}.{hint}")
        check_spellings(root, domains, "FolderDomains")
        folders = sorted({name for names in domains.values() for name in names})
        classes = read_class_file(root / CLASS_FILE, folders) if (root / CLASS_FILE).is_file() else union(folders)
        return Spec(name="FolderDomains", classes=tuple(classes), domains=dict.fromkeys(domains, ()))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, "the folders domain/class/image")
        other = [name for name in list_folder(root)[0] if name not in self.spec.domains]
        if other:
            logger.warning("FolderDomains: %s has folders without class folders, not read: %s", root, listed(other))
        loose = [name for name in list_folder(root)[1] if is_image(name)]
        if loose:
            logger.warning("FolderDomains: %s holds images outside the domains, not read: %s", root, listed(loose))
        keys = self.spec.class_keys()
        for domain in domains:
            present = {keys[name_key(name)] for name in class_folders(root / domain)}
            absent = [name for label, name in enumerate(self.spec.classes) if label not in present]
            if absent:
                logger.warning("FolderDomains: %s has no images of %s", root / domain, listed(absent))
        source = CLASS_FILE if (root / CLASS_FILE).is_file() else "the class folders of all domains, sorted"
        folders = {domain: root / domain for domain in domains}
        note = f" (class list: {source})"
        return holdout_layout(root, folders, self.spec, split_seed(cfg), complete=False, note=note)


def class_folders(domain: Path) -> list[str]:
    """Sorted names of the sub-folders that hold an image."""
    return [name for name in list_folder(domain)[0] if any(map(is_image, list_folder(domain / name)[1]))]


def union(folders: Sequence[str]) -> list[str]:
    """Sorted class names; of several spellings of one name the first is kept."""
    names: dict[str, str] = {}
    for folder in folders:
        names.setdefault(name_key(folder), folder)
    return sorted(names.values())


def check_spellings(root: Path, domains: dict[str, list[str]], dataset: str) -> None:
    """Raise if two domains, or two classes of one domain, have names that differ in case, blanks, `_` and `-` only.

    Raises:
        ValueError: naming both folders, or one whose name is no text.
    """
    for parent, names in [(root, list(domains)), *((root / domain, names) for domain, names in domains.items())]:
        seen: dict[str, str] = {}
        for name in names:
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise ValueError(
                    f"{dataset}: the name of the folder {name!r} in {parent} is not in UTF-8 or holds control "
                    "characters, so it can stand in no prompt; rename it"
                )
            other = seen.setdefault(name_key(name), name)
            if other != name:
                raise ValueError(
                    f'{dataset}: "{other}" and "{name}" in {parent} are one name when letter case, blanks, _ and - '
                    "are left aside; rename one"
                )


def read_class_file(path: Path, folders: Sequence[str]) -> list[str]:
    """Class names of a file, one a line; they must be the class folders found, in any order.

    Raises:
        ValueError: if a name is twice in the file, has no folder, or a folder is not in the file.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    keys = {name_key(folder) for folder in folders}
    seen: dict[str, str] = {}
    for name in names:
        if name_key(name) in seen:
            raise ValueError(f'{path} names the class "{name}" twice')
        seen[name_key(name)] = name
        if name_key(name) not in keys:
            raise ValueError(f'{path}: there is no class folder "{name}".{did_you_mean(name, folders)}')
    extra = sorted(folder for folder in folders if name_key(folder) not in seen)
    if extra:
        raise ValueError(f"{path} does not name the class folders {listed(extra)}; add them, or move the folders away")
    return names


def shape_hint(root: Path, shape: str = "root/domain/class/image") -> str:
    """What a root without the expected folders holds instead; starts with a blank.

    Args:
        root: the root.
        shape: what was expected.
    """
    folders, files = list_folder(root)
    if any(map(is_image, files)):
        return f" It holds images itself; expected are {shape}."
    for name in folders:
        inner, names = list_folder(root / name)
        if any(map(is_image, names)):
            return f" {root / name} holds images itself: one level is missing ({shape})."
        for deeper in inner:
            if list_folder(root / name / deeper)[0]:
                return f" {root / name / deeper} holds folders: one level too many; try DATASET.ROOT {root / name}."
    return f" It holds {listed(folders)}; expected are {shape}."
