"""Layouts that several data sets share: class folders with a seeded hold-out, and class folders with split lists."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .base import Layout, split_seed
from .folders import (
    SPLIT_FOLDERS,
    WRAPPERS,
    ImageFile,
    check_classes,
    find_candidates,
    list_folder,
    not_found,
    open_root,
    read_classes,
    read_text,
)
from .selection import HOLDOUT_SEED, hold_out
from .spec import Spec, listed, name_key

logger = logging.getLogger(__name__)

LIST_FOLDERS = ("splits", "txt_lists", "image_list", "txt")


def candidates(cfg, spec: Spec) -> list[tuple[Path, dict[str, list[Path]]]]:
    """`find_candidates` in DATASET.ROOT; only those with the most domains.

    Raises:
        FileNotFoundError: if there is none.
    """
    root = open_root(cfg.DATASET.ROOT, spec.name)
    found = find_candidates(root, spec)
    if not found:
        raise not_found(root, spec)
    most = len(found[0][1])
    return [entry for entry in found if len(entry[1]) == most]


def pick_domains(folder: Path, found: Mapping[str, list[Path]], needed: Sequence[str], spec: Spec) -> dict[str, Path]:
    """One folder for each needed domain; domains that are absent but not needed give a warning.

    Raises:
        FileNotFoundError: if a needed domain has no folder.
        ValueError: if one has several.
    """
    missing = [domain for domain in needed if domain not in found]
    if missing:
        raise FileNotFoundError(
            f"{spec.name}: {folder} has no folder for {', '.join(missing)}. Domains found: "
            f"{listed(paths[0].name for paths in found.values())}; all folders in it: {listed(list_folder(folder)[0])}"
        )
    for domain in needed:
        if len(found[domain]) > 1:
            names = ", ".join(path.name for path in found[domain])
            raise ValueError(f"{spec.name}: {folder} has {len(found[domain])} folders for the domain {domain}: {names}")
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
        inside = {name.lower(): folders[domain] / name for name in list_folder(folders[domain])[0]}
        missing = [name for name in parts.values() if name not in inside]
        if missing:
            raise FileNotFoundError(
                f"{spec.name}: no {'/, '.join(missing)}/ in {folders[domain]}; "
                f"it holds {listed(path.name for path in inside.values())}"
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


def find_lists(
    folder: Path, spec: Spec, families: Sequence[Mapping[str, str]], list_folders: Sequence[str] = ()
) -> dict[str, dict[str, Path]]:
    """Split lists that belong to a folder of domains: domain -> part -> file.

    They lie in the folder itself, in the folder above if this one is called `images`, `kfold` or `data`, or in
    `splits`, `txt_lists`, `image_list` or `txt` there. The first place that has lists is taken.

    Args:
        folder: the folder that holds the domains.
        spec: domain names.
        families: part -> ending of the lists' names, such as `{"train": "train_kfold", "val": "crossval_kfold"}`; best
            first. Lists of two families are never mixed; the family with the most lists is taken.
        list_folders: the only folders to look in, for a data set whose lists have one of their own.
    """
    homes = [folder, folder.parent] if name_key(folder.name) in WRAPPERS else [folder]
    places = [home / name for home in homes for name in list_folder(home)[0] if name in (list_folders or LIST_FOLDERS)]
    keys = spec.domain_keys(letters=False)
    for place in places if list_folders else [*places, *homes]:
        names = {name.lower(): place / name for name in list_folder(place)[1] if name.lower().endswith(".txt")}
        found = max(
            (match_lists(names, keys, family) for family in families), key=lambda lists: sum(map(len, lists.values()))
        )
        if found:
            return found
    return {}


def match_lists(
    names: Mapping[str, Path], domains: Mapping[str, str], endings: Mapping[str, str]
) -> dict[str, dict[str, Path]]:
    """The lists among some files that are called `{domain}_{ending}.txt`: domain -> part -> file."""
    found: dict[str, dict[str, Path]] = {}
    for part, ending in endings.items():
        for name, path in names.items():
            stem = name.removesuffix(".txt")
            domain = domains.get(name_key(stem.removesuffix(f"_{ending}")))
            if stem.endswith(f"_{ending}") and domain is not None:
                found.setdefault(domain, {})[part] = path
    return found


def check_lists(
    lists: Mapping[str, Mapping[str, Path]], domains: Sequence[str], parts: Sequence[str], spec: Spec
) -> None:
    """Raise if a needed domain lacks a list while others have theirs.

    Raises:
        FileNotFoundError: naming them.
    """
    missing = [f"{domain} ({part})" for domain in domains for part in parts if part not in lists.get(domain, {})]
    if missing:
        have = sorted(path.name for found in lists.values() for path in found.values())
        place = next(path.parent for found in lists.values() for path in found.values())
        raise FileNotFoundError(
            f"{spec.name}: {place} has no split list for {listed(missing)}; it has {listed(have)}. "
            "Complete them, or move them all away to use a seeded hold-out"
        )


def read_list(path: Path, folder: Path, domain: str, spec: Spec, hint: str = "") -> list[ImageFile]:
    """Images that a split list names, in its order.

    A line is a path and a number, split once from the right. The path may be absolute or start anywhere: its last three
    components are domain, class and file. The label comes from the class's name, so the number may count from 0 or 1.

    Args:
        path: the list.
        folder: the domain's folder.
        domain: canonical name of the domain.
        spec: class list and skip list.
        hint: said after the error on missing files.

    Raises:
        ValueError: if a line cannot be read, is of another domain, or names an unknown class.
        FileNotFoundError: if listed files are missing.
    """
    domains, labels = spec.domain_keys(letters=False), spec.class_keys()
    class_folders = {labels.get(name_key(name)): name for name in list_folder(folder)[0]}
    present: dict[int, set[str]] = {}
    images, missing = [], []
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(maxsplit=1)
        steps = fields[0].replace("\\", "/").split("/")[-3:]
        if len(fields) != 2 or not fields[1].lstrip("-").isdigit() or len(steps) != 3:
            raise ValueError(f'{path}, line {number}: expected "domain/class/file label", found "{line.strip()}"')
        if domains.get(name_key(steps[0])) != domain:
            raise ValueError(f'{path}, line {number}: "{fields[0]}" is not of the domain {domain}')
        label = labels.get(name_key(steps[1]))
        if label is None:
            raise ValueError(f'{path}, line {number}: {spec.name} has no class "{steps[1]}"')
        key = f"{domain}/{spec.classes[label]}/{steps[2]}"
        if key in spec.skip:
            continue
        class_folder = folder / class_folders.get(label, steps[1])
        if label not in present:
            present[label] = set(list_folder(class_folder)[1]) if label in class_folders else set()
        if steps[2] not in present[label]:
            missing.append(os.path.join(class_folder, steps[2]))
        images.append(ImageFile(os.path.join(class_folder, steps[2]), label, key))
    if missing:
        raise FileNotFoundError(
            f"{spec.name}: {len(missing)} of {len(images)} files listed in {path} are missing, "
            f"first: {missing[0]}.{hint}"
        )
    return images


def lists_or_holdout(
    cfg,
    spec: Spec,
    domains: Sequence[str],
    families: Sequence[Mapping[str, str]],
    parts: Mapping[str, str],
    heldout: tuple[str, ...],
    hint: str = "",
    list_folders: Sequence[str] = (),
) -> Layout:
    """domain/class/image with split lists, or with the seeded hold-out where there are none.

    Args:
        cfg: for the root and the seed.
        spec: class list and skip list.
        domains: canonical names of those needed.
        families: see `find_lists`.
        parts: part -> what the data set calls it.
        heldout: parts tested when nothing is trained on the domain, if there are lists.
        hint: said after the error on missing files.
        list_folders: see `find_lists`.
    """
    found = candidates(cfg, spec)
    every = {folder: find_lists(folder, spec, families, list_folders) for folder, _ in found}
    folder, matches = next((entry for entry in found if every[entry[0]]), found[0])
    folders, lists = pick_domains(folder, matches, domains, spec), every[folder]
    if not lists:
        return holdout_layout(folder, folders, spec, split_seed(cfg))
    check_lists(lists, domains, list(parts), spec)

    def read(domain: str) -> dict[str, list[ImageFile]]:
        images = {part: read_list(lists[domain][part], folders[domain], domain, spec, hint) for part in parts}
        check_disjoint(images, lists[domain])
        return images

    names = listed(path.name for domain in domains for path in lists[domain].values())
    place = lists[domains[0]][next(iter(parts))].parent
    return Layout(
        text=f"domain/class folders in {folder} with the split lists {names} in {place}",
        read=read,
        parts=parts,
        heldout=heldout,
    )


def check_disjoint(images: Mapping[str, Sequence[ImageFile]], sources: Mapping[str, Path]) -> None:
    """Raise if an image lies in two parts of a domain.

    Raises:
        ValueError: naming the lists and the first image.
    """
    seen: dict[str, str] = {}
    for part, files in images.items():
        twice = [image.key for image in files if seen.setdefault(image.key, part) != part]
        if twice:
            other = seen[twice[0]]
            raise ValueError(f"{len(twice)} images are in both {sources[other]} and {sources[part]}, first: {twice[0]}")
