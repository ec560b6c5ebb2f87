"""FolderClasses: a tree of your own without domains, root/{train,val,test}/class/image or root/class/image.

DATASET.ROOT is the tree itself. The class list is `classnames.txt` in the root (one name a line, in label order) or
else the union of the class folders of all parts, sorted. Without `test` the part `val` is tested; without any parts, a
seeded fifth of each class is. A test part alone is handed in as `train_x` too.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from .base import Layout, PlainDataset, register
from .folder_domains import CLASS_FILE, check_spellings, class_folders, read_class_file, shape_hint, union
from .folders import ImageFile, is_image, list_folder, open_root, read_classes
from .protocols import drawn_anew
from .registration import split_seed
from .spec import Spec, listed, name_key

logger = logging.getLogger(__name__)

NAME = "FolderClasses"
SHAPE = "the folders class/image or train|val|test/class/image"
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@register
class FolderClasses(PlainDataset):
    """A user's own class folders."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        root = open_root(cfg.DATASET.ROOT, SHAPE)
        parts = part_folders(root)
        found = {folder.name if parts else ".": class_folders(folder) for folder in parts.values() or [root]}
        folders = sorted({name for names in found.values() for name in names})
        if not folders:
            hint = shape_hint(root, SHAPE)
            if any(class_folders(root / name) for name in list_folder(root)[0]):
                hint += " A tree domain/class/image is read by DATASET.NAME FolderDomains."
            raise FileNotFoundError(f"{NAME}: no class folder with images found in {root}.{hint}")
        check_spellings(root, found, NAME)
        classes = read_class_file(root / CLASS_FILE, folders) if (root / CLASS_FILE).is_file() else union(folders)
        return Spec(name=NAME, classes=tuple(classes), domains={})

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, SHAPE)
        parts = part_folders(root)
        source = CLASS_FILE if (root / CLASS_FILE).is_file() else "the class folders, sorted"
        note = f"(class list: {source})"
        used = {folder.name for folder in parts.values()} or set(class_folders(root))
        other = [name for name in list_folder(root)[0] if name not in used]
        if other:
            logger.warning("%s: %s has folders that are not read: %s", NAME, root, listed(other))
        loose = [name for name in list_folder(root)[1] if is_image(name)]
        if parts and loose:
            logger.warning("%s: %s holds images outside the parts, not read: %s", NAME, root, listed(loose))

        def read(pool: str) -> dict[str, list[ImageFile]]:
            folders = parts or {"train": root}
            return {
                part: read_classes(folder, part if parts else "all", self.spec, complete=False)
                for part, folder in folders.items()
            }

        if len(parts) > 1 or "test" in parts:
            names = {part: parts[part].name for part in parts}
            return Layout(f"{'|'.join(names.values())}/class folders in {root} {note}", read, names, heldout=())
        place = next(iter(parts.values()), root)
        return drawn_anew(Layout(f"class folders in {place} {note}", read, {"train": "all"}, ()), split_seed(cfg))


def part_folders(root: Path) -> dict[str, Path]:
    """Part -> its folder, if the root has folders for parts and they hold class folders."""
    there = {name_key(name): root / name for name in list_folder(root)[0]}
    found = {
        part: next(there[name] for name in names if name in there)
        for part, names in PART_NAMES.items()
        if any(name in there for name in names)
    }
    found = {part: folder for part, folder in found.items() if class_folders(folder)}
    return {"test": found["val"]} if [*found] == ["val"] else found
