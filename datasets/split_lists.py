"""Class folders with split lists: `{domain}_{part}.txt`, each line a path and a label."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, split_seed
from .folders import WRAPPERS, ImageFile, is_image, list_folder, list_images, read_text
from .layouts import candidates, holdout_layout, pick_domains
from .listed_files import clean_path
from .spec import Spec, listed, name_key

logger = logging.getLogger(__name__)

LIST_FOLDERS = ("splits", "txt_lists", "image_list", "txt", "pacs_label")


def find_lists(
    folder: Path, spec: Spec, families: Sequence[Mapping[str, str]], list_folders: Sequence[str] = ()
) -> dict[str, dict[str, Path]]:
    """Split lists that belong to a folder of domains: domain -> part -> file.

    They lie in the folder itself, in those above as long as it is called `images`, `kfold`, `data` or like the data
    set, or in `splits`, `txt_lists`, `image_list`, `txt` or `pacs_label` there (or in a folder of the same name inside:
    Kaggle's copy of PACS has `pacs_label/pacs_label`). The first place that has lists is taken.

    Args:
        folder: the folder that holds the domains.
        spec: domain names.
        families: part -> ending of the lists' names, such as `{"train": "train_kfold", "val": "crossval_kfold"}`; best
            first. Lists of two families are never mixed; the family with the most lists is taken.
        list_folders: the only folders to look in, for a data set whose lists have one of their own.
    """
    homes, wrappers = [folder], {name_key(name) for name in (*WRAPPERS, *spec.folders)}
    while name_key(homes[-1].name) in wrappers and len(homes) < 4:
        homes.append(homes[-1].parent)
    known = {name_key(name) for name in list_folders or LIST_FOLDERS}
    places = [home / name for home in homes for name in list_folder(home)[0] if name_key(name) in known]
    places = [place for outer in places for place in (outer, outer / outer.name) if place.is_dir()]
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
        MissingFileError: naming them.
    """
    missing = [f"{domain} ({part})" for domain in domains for part in parts if part not in lists.get(domain, {})]
    if missing:
        have = sorted(path.name for found in lists.values() for path in found.values())
        place = next(path.parent for found in lists.values() for path in found.values())
        raise MissingFileError(
            f"{spec.name}: {place} has no split list for {listed(missing)}; it has {listed(have)}. "
            "Complete them, or move them all away to use a seeded hold-out"
        )


def split_line(line: str, path: Path, number: int) -> tuple[str, int]:
    """Path and label of a line of a split list, which blanks or tabs part.

    Raises:
        UserError: if it is no such line; names file and line.
    """
    file, _, label = line.strip().replace("\t", " ").rpartition(" ")
    if not label.removeprefix("-").isdecimal() or not file.strip():
        marks = [mark for mark in ",;|" if mark in line]
        hint = f' with a blank between them, not "{marks[0]}"' if marks else ""
        raise UserError(f'{path}, line {number}: expected "domain/class/file label"{hint}, found "{line.strip()}"')
    return clean_path(file), int(label)


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
        UserError: if a line cannot be read, is of another domain, or names an unknown class.
        MissingFileError: if listed files are missing.
    """
    domains, labels = spec.domain_keys(letters=False), spec.class_keys()
    class_folders = {labels.get(name_key(name)): name for name in list_folder(folder)[0]}
    present: dict[int, set[str]] = {}
    images, missing = [], []
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, _ = split_line(line, path, number)
        steps = file.split("/")[-3:]
        if len(steps) != 3:
            raise UserError(f'{path}, line {number}: expected "domain/class/file label", found "{line.strip()}"')
        if domains.get(name_key(steps[0])) != domain:
            raise UserError(f'{path}, line {number}: "{file}" is not of the domain {domain}')
        label = labels.get(name_key(steps[1]))
        if label is None:
            raise UserError(f'{path}, line {number}: {spec.name} has no class "{steps[1]}"')
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
        raise MissingFileError(
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
    selective: bool = False,
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
        selective: whether the lists are meant to leave out images; if not, those that they leave out give a warning.
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
        tell_unlisted(images, folders[domain], domain, spec, logging.INFO if selective else logging.WARNING)
        return images

    names = listed(path.name for domain in domains for path in lists[domain].values())
    place = lists[domains[0]][next(iter(parts))].parent
    return Layout(
        text=f"domain/class folders in {folder} with the split lists {names} in {place}",
        read=read,
        parts=parts,
        heldout=heldout,
    )


def tell_unlisted(images: Mapping[str, Sequence[ImageFile]], folder: Path, domain: str, spec: Spec, level: int) -> None:
    """Log how many images of a domain's folder stand in none of its lists, and the first of them.

    Args:
        images: part -> listed images.
        folder: the domain's folder.
        domain: canonical name of the domain.
        spec: class list and skip list.
        level: of the message.
    """
    used = {image.path for files in images.values() for image in files}
    labels, folders = spec.class_keys(), list_folder(folder)[0]
    rest = [name for name in list_folder(folder)[1] if is_image(name)]
    for name in folders:
        label = labels.get(name_key(name))
        start = "" if label is None else f"{domain}/{spec.classes[label]}/"
        home = f"{folder}{os.sep}{name}{os.sep}"
        rest += [
            f"{name}/{file}" for file in list_images(home) if home + file not in used and start + file not in spec.skip
        ]
    if rest:
        message = "%s: %d images in %s stand in no split list and are not used: %s"
        logger.log(level, message, spec.name, len(rest), folder, listed(rest, 5))


def check_disjoint(images: Mapping[str, Sequence[ImageFile]], sources: Mapping[str, Path]) -> None:
    """Raise if an image lies in two parts of a domain.

    Raises:
        UserError: naming the lists and the first image.
    """
    seen: dict[str, str] = {}
    for part, files in images.items():
        twice = [image.key for image in files if seen.setdefault(image.key, part) != part]
        if twice:
            other = seen[twice[0]]
            raise UserError(f"{len(twice)} images are in both {sources[other]} and {sources[part]}, first: {twice[0]}")
