"""Published data sets with domains whose classes are those of the class folders: Digits-DG, Office-31, NICO++, VisDA-C
and CUB-Paintings.

Names and spellings of the domains stand in `lists/`; those of folders are assumed where no page of the set was read,
and no number of classes or images is compared. The class list is the union of the class folders of all domains that are
there, sorted, as for a user's own folders (`own_folders.py`), whose layouts are read too: class folders in a domain, in
`images/` inside it, or in the parts of a split. So DATASET.CLASSNAMES and counters go as there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, ListedDataset, register
from .class_names import class_file, classes_of_folders, with_file
from .folders import check_read
from .layouts import candidates, pick_domains
from .options import split_seed
from .own_folders import (
    Tree,
    check_names,
    class_folders,
    look_through,
    part_folders,
    shape_hint,
    tree_layout,
    unread_classes,
)
from .spec import Spec, load_spec

logger = logging.getLogger(__name__)


class FolderSet(ListedDataset):
    """Base class; `file` is the stem of the entry in `lists/`, which has no classes."""

    file = ""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        spec = load_spec(cls.file)
        _, tree = domains_there(cfg, spec)
        folders = [folder for parts in tree.values() for folder in parts.values()]
        found = {folder: class_folders(folder) for folder in folders}
        check_names(spec.name, found)
        check_read(unread_classes(folders), cfg.DATASET.get("ON_UNREAD_CLASS", "error"), spec.name)
        own = classes_of_folders(found, spec.name)
        own = replace(own, domains=spec.domains, folders=spec.folders)
        return with_file(own, class_file(cfg, folders))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        home, tree = domains_there(cfg, self.spec, domains)
        return tree_layout(home, tree, domains, self.spec, split_seed(cfg), " (class list: the class folders, sorted)")


def domains_there(cfg, spec: Spec, needed: Sequence[str] = ()) -> tuple[Path, Tree]:
    """The folder that holds the domains, and where the class folders of each that is there lie; all of `needed` are.

    Raises:
        MissingFileError: a domain has no class folder with images.
        UserError: the domains differ in their parts.
    """
    home, matches = candidates(cfg, spec)[0]
    if needed:
        pick_domains(home, matches, needed, spec)
    there = {name: matches[name][0] for name in spec.domains if name in matches}
    tree: Tree = {}
    for name, folder in there.items():
        top = look_through(folder)
        tree[name] = part_folders(top, lambda part: bool(class_folders(part))) or {"": top}
        if not any(map(class_folders, tree[name].values())):
            raise MissingFileError(
                f"{spec.name}: {folder} holds no class folder with images.{shape_hint(top, 'domain/class/image')}"
            )
    shapes = {name: ", ".join(filter(None, parts)) or "no parts" for name, parts in tree.items()}
    if len({*shapes.values()}) > 1:
        texts = [f"{name} ({shape})" for name, shape in shapes.items()]
        raise UserError(
            f"{spec.name}: the domains in {home} differ in their parts: {'; '.join(texts)}; give all the same"
        )
    return home, tree


@register
class DigitsDG(FolderSet):
    """4 domains of digits, with the parts train and val: Zhou et al., AAAI 2020."""

    file = "digits_dg"


@register
class Office31(FolderSet):
    """3 domains: Saenko, Kulis, Fritz, Darrell, ECCV 2010."""

    file = "office31"


@register
class NICOpp(FolderSet):
    """NICO++, the six domains that all classes have: Zhang et al., CVPR 2023."""

    file = "nico_pp"


@register
class VisDA17(FolderSet):
    """VisDA-C: renderings (the folder train) and photographs (validation): Peng et al., 2017."""

    file = "visda17"


@register
class CUBPaintings(FolderSet):
    """Photographs (CUB-200-2011) and paintings of birds: Wang, Chen, Wang, Long, CVPR 2020."""

    file = "cub_paintings"
