"""Layouts that several data sets share: class folders with a seeded hold-out, and a folder for each part of a split."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from . import packed
from .base import Layout
from .folders import (
    SPLIT_FOLDERS,
    WRAPPERS,
    ImageFile,
    check_classes,
    find_candidates,
    find_elsewhere,
    is_image,
    list_folder,
    open_root,
    read_classes,
)
from .selection import HOLDOUT_SEED, hold_out
from .spec import Spec, listed

logger = logging.getLogger(__name__)


def candidates(cfg, spec: Spec) -> list[tuple[Path, dict[str, list[Path]]]]:
    """`find_candidates` in DATASET.ROOT; only those with the most domains.

    Raises:
        MissingFileError: if there is none.
    """
    root = open_root(cfg.DATASET.ROOT, spec.name)
    found = find_candidates(root, spec)
    if not found:
        raise not_found(root, spec)
    most = len(found[0][1])
    return [entry for entry in found if len(entry[1]) == most]


def not_found(root: Path, spec: Spec) -> FileNotFoundError:
    """The error for a root in which the data set cannot be seen."""
    places = [f"{root.name}/ itself", *(f"{name}/" for name in spec.folders)]
    wrappers = ", ".join(f"{wrapper}/" for wrapper in WRAPPERS)
    message = (
        f"{spec.name} not found in {root}. Looked for the folders {listed(spec.domains)} in {', '.join(places)} "
        f"(any letter case, blanks, _ and - alike) and in {wrappers} inside them. "
        f"{root} holds {listed(list_folder(root)[0])}."
    )
    nested = find_elsewhere(root, spec)
    if nested is not None:
        message += f" Folders of that kind lie in {nested}: set DATASET.ROOT to {nested}."
    else:
        message += packed.hint(root, spec.folders)
    return FileNotFoundError(f"{message} Nothing is downloaded; see docs/datasets.md")


def pick_domains(folder: Path, found: Mapping[str, list[Path]], needed: Sequence[str], spec: Spec) -> dict[str, Path]:
    """One folder for each needed domain; domains that are absent but not needed give a warning.

    Raises:
        MissingFileError: if a needed domain has no folder.
        UserError: if one has several.
    """
    missing = [domain for domain in needed if domain not in found]
    if missing:
        raise MissingFileError(
            f"{spec.name}: {folder} has no folder for {', '.join(missing)}. Domains found: "
            f"{listed(paths[0].name for paths in found.values())}; all folders in it: {listed(list_folder(folder)[0])}"
        )
    for domain in needed:
        if len(found[domain]) > 1:
            names = ", ".join(path.name for path in found[domain])
            raise UserError(f"{spec.name}: {folder} has {len(found[domain])} folders for the domain {domain}: {names}")
    absent = [domain for domain in spec.domains if domain not in found]
    if absent:
        logger.warning("%s: %s has no folder for %s, which this run does not use", spec.name, folder, ", ".join(absent))
    return {domain: found[domain][0] for domain in needed}


def holdout_layout(
    where: Path, folders: Mapping[str, Path], spec: Spec, seed: int, complete: bool = True, note: str = ""
) -> Layout:
    """domain/class/image without splits: 80 % of each class train, 20 % val; a held-out target is tested as a whole.

    Args:
        where: the folder that holds the domains, for the text.
        folders: domain -> its folder.
        spec: class list.
        seed: of the hold-out.
        complete: whether each domain must have every class.
        note: said after the layout's name.
    """

    def read(domain: str) -> dict[str, list[ImageFile]]:
        train, val = hold_out(read_classes(folders[domain], domain, spec, complete=complete), seed, domain)
        return {"train": train, "val": val}

    used = seed if seed >= 0 else HOLDOUT_SEED
    return Layout(
        text=f"domain/class folders in {where}{note}, no split lists, a fifth of each class held out by seed {used}",
        read=read,
        parts={"train": "train (80 %)", "val": "hold-out (20 %)"},
        heldout=("train", "val"),
    )


def has_part_folders(folder: Path) -> bool:
    """Whether a domain's folder holds folders such as `train` and `test` in place of class folders."""
    return any(name.lower() in SPLIT_FOLDERS for name in list_folder(folder)[0])


def part_folders_layout(
    where: Path,
    folders: Mapping[str, Path],
    spec: Spec,
    parts: Mapping[str, str],
    heldout: tuple[str, ...],
    label_prefix: bool = False,
    note: str = "",
) -> Layout:
    """domain/part/class/image, with a folder for each part of the split.

    Args:
        where: the folder that holds the domains, for the text.
        folders: domain -> its folder.
        spec: class list.
        parts: part -> name of its folder, in any letter case.
        heldout: parts tested when nothing is trained on the domain.
        label_prefix: whether class folders may start with a number such as in `000_Alarm_Clock`.
        note: said at the end of the layout's text.
    """

    def read(domain: str) -> dict[str, list[ImageFile]]:
        inside: dict[str, Path] = {}
        for name in list_folder(folders[domain])[0]:
            if name.lower() in inside and name.lower() in parts.values():
                twin = inside[name.lower()].name
                raise UserError(f"{folders[domain]} has two folders for the part {name.lower()}: {twin}, {name}")
            inside[name.lower()] = folders[domain] / name
        missing = [name for name in parts.values() if name not in inside]
        if missing:
            raise MissingFileError(
                f"{spec.name}: no {'/, '.join(missing)}/ in {folders[domain]}; "
                f"it holds {listed(path.name for path in inside.values())}"
            )
        other = [path.name for name, path in inside.items() if name not in SPLIT_FOLDERS]
        other += [name for name in list_folder(folders[domain])[1] if is_image(name)]
        if other:
            logger.warning(
                "%s: %s holds more than the folders of its parts, not read: %s",
                spec.name,
                folders[domain],
                listed(other),
            )
        images = {
            part: read_classes(inside[name], f"{domain}/{name}", spec, label_prefix, complete=False)
            for part, name in parts.items()
        }
        found = {image.label for files in images.values() for image in files}
        if len(found) < len(spec.classes):
            check_classes(inside[parts["train"]].parent, spec, found)
        for part, files in images.items():
            absent = sorted(found - {image.label for image in files})
            if absent:
                names = listed(spec.classes[label] for label in absent)
                logger.warning("%s: %s has no images of %s", spec.name, inside[parts[part]], names)
        return images

    return Layout(
        text=f"domain/{'|'.join(parts.values())}/class folders in {where}{note}",
        read=read,
        parts=parts,
        heldout=heldout,
    )
