"""A user's own folders: `FolderDomains` reads root/domain/class/image, `FolderClasses` reads root/class/image.

DATASET.ROOT is the tree itself. The class list is the union of the class folders of all domains and parts, sorted, or
in the order of a `classnames.txt`; never the classes of the domains a run trains on. `class_names` says how classes are
called in prompts. A folder `images` that holds all images of its level is looked through (Office-31's
amazon/images/mouse).
"""

import contextlib
import logging
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.image_formats import is_image

from . import packed
from .base import Layout, ListedDataset, Parts, register, split_again
from .class_names import class_file, classes_of_folders, with_file
from .folders import PART_KEYS, PART_NAMES, UNREAD_IMAGES, WRAPPERS, check_read, list_folder, open_root, read_classes
from .hub import TableParts, own_copy, own_layout
from .layouts import holdout_layout
from .options import split_seed
from .spec import Spec, listed
from .unlabelled import flat_images, layout_of, spec_of_names

logger = logging.getLogger(__name__)

IMAGES = "images"
NO_DOMAINS = (*PART_KEYS, "full", *WRAPPERS)  # a domain called so is a part of something else
DOMAINS_SHAPE = "the folders domain/class/image"
CLASSES_SHAPE = "the folders class/image or train|val|test/class/image"

Tree = dict[str, dict[str, Path]]  # domain -> part, "" where it has none -> the folder of its class folders


@register
class FolderDomains(ListedDataset):
    """Folders with domains, with or without the parts of a split.

    The domains are the folders that hold class folders with images, sorted. A class may be absent from a domain, which
    gives a warning. Folders for parts, domain/{train,val,test}/class or {train,val,test}/domain/class, are the split: a
    held-out domain is tested on `test`, or on all its parts if there is none. Without parts, a seeded fifth of each
    class is held out. Every domain must have the same parts, and none may be called like a part.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        root = open_root(cfg.DATASET.ROOT, DOMAINS_SHAPE)
        tree = find_tree(root)
        if not tree and (copy := own_copy(cfg, "FolderDomains", domains=True)):
            return copy[0]
        if not tree:
            hint = shape_hint(look_through(root))
            if class_folders(look_through(root)):
                hint += " A tree class/image, without domains, is read by DATASET.NAME FolderClasses."
            hint += packed.hint(root)
            raise MissingFileError(f"FolderDomains: no domain found in {root}.{hint}")
        folders = [folder for parts in tree.values() for folder in parts.values()]
        classes = {folder: class_folders(folder) for folder in folders}
        check_names("FolderDomains", {root: tree, **classes})
        lost = unread_classes(folders)
        for name in list_folder(root)[0]:  # a domain of which no file is read is none
            inner = [root / name / other for other in list_folder(root / name)[0]] if name not in tree else []
            names = {folder: list_folder(folder)[1] for folder in inner}
            lost |= {folder: False for folder in inner if any(f.lower().endswith(UNREAD_IMAGES) for f in names[folder])}
        check_read(lost, cfg.DATASET.get("ON_UNREAD_CLASS", "error"), "FolderDomains")
        spec = classes_of_folders(classes, "FolderDomains")
        return replace(with_file(spec, class_file(cfg, [root, *folders])), domains=dict.fromkeys(tree, ()))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, DOMAINS_SHAPE)
        tree = find_tree(root)
        if not tree and (copy := own_copy(cfg, "FolderDomains", domains=True)):
            return own_layout(cfg, *copy, TableParts())
        read = {folder for parts in tree.values() for folder in parts.values()}
        above = {parent for folder in read for parent in folder.parents if parent.is_relative_to(root)} - read
        used = {parent for domain in domains for folder in tree[domain].values() for parent in folder.parents}
        for folder in sorted(above & used):
            names = {path.name for path in above | read if path.parent == folder}
            warn_of_unread("FolderDomains", folder, names, "domains")
        note = f" (class list: {getattr(self.spec.names_file, 'name', 'the class folders of all domains, sorted')})"
        return tree_layout(root, tree, domains, self.spec, split_seed(cfg), note)


def tree_layout(root: Path, tree: Tree, domains: Sequence[str], spec: Spec, seed: int, note: str) -> Layout:
    """The layout of the domains that a run uses; a class that one of them lacks gives a warning.

    Args:
        root: the folder that holds the domains, for the text.
        tree: where the class folders of each domain and part lie; all domains have the same parts.
        domains: those used.
        spec: class list.
        seed: of the hold-out where there are no parts.
        note: said of the folders.
    """
    keys = spec.class_keys()
    for domain in domains:
        present = {keys[name_key(name)] for folder in tree[domain].values() for name in class_folders(folder)}
        absent = [name for label, name in enumerate(spec.classes) if label not in present]
        if absent:
            logger.warning("%s: %s has no images of %s", spec.name, root / domain, listed(absent))
    parts = list(tree[domains[0]])
    if len(parts) == 1:
        folders = {domain: tree[domain][parts[0]] for domain in domains}
        return holdout_layout(root, folders, spec, seed, complete=False, note=note)

    def read_domain(domain: str) -> Parts:
        places = tree[domain].items()
        return {part: read_classes(folder, f"{domain}/{part}", spec, complete=False) for part, folder in places}

    text = f"domain/class folders in the parts {', '.join(parts)} of {root}{note}"
    return Layout(text, read_domain, {part: part for part in parts}, ("test",) if "test" in parts else tuple(parts))


@register
class FolderClasses(ListedDataset):
    """Folders without domains, root/{train,val,test}/class/image or root/class/image.

    Without `test` the part `val` is tested; without any parts, a seeded fifth of each class is. A test part alone is
    handed in as `train_x` too. Images without class folders, beside a file of class names, have no labels.
    """

    publishes_test = False

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        root = open_root(cfg.DATASET.ROOT, CLASSES_SHAPE)
        top = look_through(root)
        parts = find_parts(top)
        found = {folder: class_folders(folder) for folder in parts.values() or [top]}
        if not any(found.values()) and (copy := own_copy(cfg, "FolderClasses", domains=False)):
            return copy[0]
        if not any(found.values()):
            names = class_file(cfg, [root, top])
            if names is not None and flat_images(top):
                return spec_of_names("FolderClasses", names)
            hint = shape_hint(top, CLASSES_SHAPE)
            with contextlib.suppress(ValueError):
                if tree := find_tree(root):
                    hint = f" The tree of domains ({listed(tree)}) is read by DATASET.NAME FolderDomains."
            hint += packed.hint(root)
            raise MissingFileError(f"FolderClasses: no class folder with images found in {root}.{hint}")
        check_names("FolderClasses", found)
        lost = unread_classes([*parts.values()] or [top])
        check_read(lost, cfg.DATASET.get("ON_UNREAD_CLASS", "error"), "FolderClasses")
        return with_file(classes_of_folders(found, "FolderClasses"), class_file(cfg, [root, top, *parts.values()]))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, CLASSES_SHAPE)
        top = look_through(root)
        parts = find_parts(top)
        found = any(map(class_folders, parts.values() or [top]))
        if not found and (copy := own_copy(cfg, "FolderClasses", domains=False)):
            return own_layout(cfg, *copy, TableParts())
        note = f"(class list: {getattr(self.spec.names_file, 'name', 'the class folders, sorted')})"
        if not found:
            self.unlabelled = True
            return layout_of(flat_images(top), f"in {top} {note}")
        names = {part: folder.relative_to(top).parts[0] for part, folder in parts.items()}
        warn_of_unread("FolderClasses", top, [*names.values()] or class_folders(top), "parts" if parts else "")

        def read(pool: str) -> Parts:
            folders = parts or {"train": top}
            return {
                part: read_classes(folder, part if parts else "all", self.spec, complete=False)
                for part, folder in folders.items()
            }

        if len(parts) > 1 or "test" in parts:
            return Layout(f"{'|'.join(names.values())}/class folders in {root} {note}", read, names)
        place = next(iter(parts.values()), top)
        return split_again(Layout(f"class folders in {place} {note}", read, {"train": "all"}), split_seed(cfg))


def find_parts(top: Path) -> dict[str, Path]:
    """Part -> the folder of its class folders; empty if there are no folders for parts."""
    parts = part_folders(top, lambda folder: bool(class_folders(folder)))
    return {"test": parts["val"]} if [*parts] == ["val"] else parts


def find_tree(root: Path) -> Tree:
    """The domains below a folder, sorted, and where the class folders of each lie; empty if there are none.

    Refuses domains that have different parts, or that are called like a part.
    """
    top = look_through(root)
    parts = part_folders(top, lambda folder: bool(domain_folders(folder)))
    tree = domain_folders(top)
    if parts and tree:
        raise UserError(
            f"FolderDomains: {top} holds domains in the parts {', '.join(parts)} and, beside those, {listed(tree)}: "
            "use one of domain/class, domain/part/class and part/domain/class for all"
        )
    for part, folder in parts.items():
        for domain, found in domain_folders(folder).items():
            if [*found] != [""]:
                raise UserError(
                    f"FolderDomains: {folder / domain} lies in the part {part} and holds parts itself "
                    f"({', '.join(found)}): use parts above the domains or below them"
                )
            tree.setdefault(domain, {})[part] = found[""]
    wrong = [domain for domain in tree if name_key(domain) in NO_DOMAINS]
    if wrong and len(wrong) == len(tree) and all(name_key(domain) in PART_KEYS for domain in wrong):
        raise UserError(
            f"FolderDomains: {listed(wrong)} in {top} are parts of a split, not domains. A tree part/class/image is "
            f"read by DATASET.NAME FolderClasses; if {top.name} is one of several domains, set DATASET.ROOT "
            f"{top.parent}"
        )
    if wrong:
        raise UserError(
            f"FolderDomains: {listed(wrong)} in {top} would be read as domains, as are all its folders with class "
            f"folders ({listed(tree)}): move what is no domain away, and rename what is one"
        )
    shapes: dict[tuple[str, ...], list[str]] = {}
    for domain in tree:
        shapes.setdefault(tuple(tree[domain]), []).append(domain)
    if len(shapes) > 1:
        texts = [f"{listed(names)} ({', '.join(filter(None, shape)) or 'no parts'})" for shape, names in shapes.items()]
        raise UserError(
            f"FolderDomains: the domains in {top} differ in their parts, so that one would be tested on other images "
            f"than the next: {'; '.join(texts)}. Give each domain the same parts, or move those that differ away"
        )
    return dict(sorted(tree.items()))


def domain_folders(top: Path) -> Tree:
    """The sub-folders that hold class folders, or parts with class folders.

    Refuses class folders both in a sub-folder and one level deeper, and parts without the one to train on.
    """
    tree: Tree = {}
    for name in list_folder(look_through(top))[0]:
        folder = look_through(look_through(top) / name)
        classes, parts = class_folders(folder), part_folders(folder, lambda part: bool(class_folders(part)))
        deeper = [path.name for path in parts.values()]
        deeper += [inner for inner in list_folder(folder)[0] if inner == IMAGES and class_folders(folder / inner)]
        if classes and deeper:
            raise UserError(
                f"FolderDomains: {folder} holds class folders ({listed(classes)}) and, beside them, {listed(deeper)} "
                "with further class folders: move all class folders to one level"
            )
        if len(parts) > 1 and "train" not in parts:
            raise UserError(
                f"FolderDomains: {folder} has the parts {', '.join(parts)}, but no train: add it, or move the images "
                "of all parts together"
            )
        if classes or parts:
            tree[name] = parts or {"": folder}
    return tree


def look_through(folder: Path) -> Path:
    """The folder `images` in a folder if all its class folders lie in there, otherwise the folder itself."""
    names = list_folder(folder)[0]
    inner = next((folder / name for name in names if name_key(name) == IMAGES), None)
    if inner is None or not list_folder(inner)[0] or any(map(is_image, list_folder(inner)[1])):
        return folder  # the last: a class that is called so
    return folder if any(holds_images(folder / name) for name in names if folder / name != inner) else inner


def holds_images(folder: Path, depth: int = 4) -> bool:
    """Whether an image lies in a folder or in one below it."""
    folders, files = list_folder(folder)
    return any(map(is_image, files)) or (depth > 0 and any(holds_images(folder / name, depth - 1) for name in folders))


def part_folders(root: Path, fits: Callable[[Path], bool]) -> dict[str, Path]:
    """Part -> the folder of its images, in the order train, val, test, where sub-folders are called like parts.

    `fits` says whether a folder holds what a part should. Two folders for one part are refused.
    """
    found: dict[str, Path] = {}
    for name in list_folder(root)[0]:
        part, folder = PART_KEYS.get(name_key(name)), look_through(root / name)
        if part is None or not fits(folder):
            continue
        if part in found:
            names = ", ".join(path.relative_to(root).parts[0] for path in (found[part], folder))
            raise UserError(f"{root} has two folders for the part {part}: {names}; keep one")
        found[part] = folder
    return {part: found[part] for part in PART_NAMES if part in found}


def warn_of_unread(dataset: str, folder: Path, used: Collection[str], outside: str) -> None:
    """Name the folders that are not among those used, and the images that lie beside them."""
    folders, files = list_folder(folder)
    if other := [name for name in folders if name not in used]:
        logger.warning("%s: %s has folders that are not read: %s", dataset, folder, listed(other))
    if outside and (loose := [name for name in files if is_image(name)]):
        logger.warning("%s: %s holds images outside the %s, not read: %s", dataset, folder, outside, listed(loose))


def unread_classes(parents: Sequence[Path]) -> dict[Path, bool]:
    """The class folders without an image in some folders, and whether no other of these folders has the class."""
    read = {name_key(name) for parent in parents for name in class_folders(parent)}
    return {
        parent / name: name_key(name) not in read
        for parent in parents
        for name in list_folder(parent)[0]
        if name not in class_folders(parent)
    }


def class_folders(domain: Path) -> list[str]:
    """Sorted names of the sub-folders that hold an image."""
    return [name for name in list_folder(domain)[0] if any(map(is_image, list_folder(domain / name)[1]))]


def check_names(dataset: str, names: Mapping[Path, Iterable[str]]) -> None:
    """Refuse folders whose name is no text, and two in one parent that differ in case, blanks, `_` and `-` only."""
    for parent, folders in names.items():
        seen: dict[str, str] = {}
        for name in folders:
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise UserError(
                    f"{dataset}: the name of the folder {name!r} in {parent} is not in UTF-8 or holds control "
                    "characters, so it can stand in no prompt; rename it"
                )
            if (other := seen.setdefault(name_key(name), name)) != name:
                raise UserError(
                    f'{dataset}: "{other}" and "{name}" in {parent} are one name when letter case, blanks, _ and - '
                    "are left aside; rename one"
                )


def shape_hint(root: Path, shape: str = "root/domain/class/image") -> str:
    """What a root without the expected folders holds instead; starts with a blank."""
    folders, files = list_folder(root)
    if any(map(is_image, files)):
        return f" It holds images itself; expected are {shape}."
    for name in folders:
        inner, names = list_folder(root / name)
        if any(map(is_image, names)):
            return f" {root / name} holds images itself: one level is missing ({shape})."
        for deeper in inner:
            if list_folder(root / name / deeper)[0]:
                if sum(deeper in list_folder(root / other)[0] for other in folders) > 1:
                    return f" Move what lies in the folders {deeper}/ of {listed(folders)} one level up ({shape})."
                return f" {root / name / deeper} holds folders: one level too many; try DATASET.ROOT {root / name}."
    return f" It holds {listed(folders)}; expected are {shape}."
