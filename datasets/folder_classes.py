"""FolderClasses: a tree of your own without domains, root/{train,val,test}/class/image or root/class/image.

DATASET.ROOT is the tree itself. The class list is the union of the class folders of all parts, sorted, or in the order
of a `classnames.txt`; `class_names` says how classes are called in prompts. Without `test` the part `val` is tested;
without any parts, a seeded fifth of each class is. A test part alone is handed in as `train_x` too.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError

from . import packed
from .base import Layout, PlainDataset, register
from .class_names import class_file, own_classes, with_file
from .folder_domains import (
    check_spellings,
    class_folders,
    find_tree,
    look_through,
    part_folders,
    shape_hint,
    unread_classes,
)
from .folders import ImageFile, check_read, is_image, list_folder, open_root, read_classes
from .protocols import drawn_anew
from .registration import split_seed
from .spec import Spec, listed

logger = logging.getLogger(__name__)

NAME = "FolderClasses"
SHAPE = "the folders class/image or train|val|test/class/image"


@register
class FolderClasses(PlainDataset):
    """A user's own class folders."""

    publishes_test = False

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        root = open_root(cfg.DATASET.ROOT, SHAPE)
        top = look_through(root)
        parts = find_parts(top)
        found = {str(folder.relative_to(root)): class_folders(folder) for folder in parts.values() or [top]}
        if not any(found.values()):
            hint = shape_hint(top, SHAPE)
            with contextlib.suppress(ValueError):
                if tree := find_tree(root):
                    hint = f" The tree of domains ({listed(tree)}) is read by DATASET.NAME FolderDomains."
            hint += packed.hint(root)
            raise MissingFileError(f"{NAME}: no class folder with images found in {root}.{hint}")
        check_spellings(root, found, NAME)
        lost = unread_classes([*parts.values()] or [top])
        check_read(lost, cfg.DATASET.get("ON_UNREAD_CLASS", "error"), NAME)
        return with_file(own_classes(found, NAME), class_file(cfg, [root, top, *parts.values()]))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, SHAPE)
        top = look_through(root)
        parts = find_parts(top)
        source = getattr(self.spec.names_file, "name", "the class folders, sorted")
        note = f"(class list: {source})"
        names = {part: folder.relative_to(top).parts[0] for part, folder in parts.items()}
        used = set(names.values()) or set(class_folders(top))
        other = [name for name in list_folder(top)[0] if name not in used]
        if other:
            logger.warning("%s: %s has folders that are not read: %s", NAME, top, listed(other))
        loose = [name for name in list_folder(top)[1] if is_image(name)]
        if parts and loose:
            logger.warning("%s: %s holds images outside the parts, not read: %s", NAME, top, listed(loose))

        def read(pool: str) -> dict[str, list[ImageFile]]:
            folders = parts or {"train": top}
            return {
                part: read_classes(folder, part if parts else "all", self.spec, complete=False)
                for part, folder in folders.items()
            }

        if len(parts) > 1 or "test" in parts:
            return Layout(f"{'|'.join(names.values())}/class folders in {root} {note}", read, names, heldout=())
        place = next(iter(parts.values()), top)
        return drawn_anew(Layout(f"class folders in {place} {note}", read, {"train": "all"}, ()), split_seed(cfg))


def find_parts(top: Path) -> dict[str, Path]:
    """Part -> the folder of its class folders; empty if there are no folders for parts."""
    parts = part_folders(top, lambda folder: bool(class_folders(folder)))
    return {"test": parts["val"]} if [*parts] == ["val"] else parts
