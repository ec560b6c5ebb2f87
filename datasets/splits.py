"""Published splits: lists of a domain's images (`{domain}_{part}.txt`), and the split files of CoOp's authors.

Split lists have a path and a label in each line. `split_zhou_<name>.json` (Zhou, Yang, Loy, Liu, IJCV 2022, arXiv
2109.01134) holds {"train": [[path, label, class name], ...], "val": ..., "test": ...} with paths relative to the image
folder. A missing file is an error: results on another split are not comparable. DATASET.SPLIT_FILE names a file to read
in its place.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.data_sets import name_key, read_entry
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import no_file
from dassl_clip.results.image_formats import is_image

from . import packed
from .base import Layout, ListedDataset, Parts
from .folders import WRAPPERS, ImageFile, list_folder, list_images, open_root, read_text
from .layouts import FileFinder, below, best_base, candidates, clean_path, holdout_layout, named_folders, pick_domains
from .options import split_seed
from .spec import PARTS, Spec, listed, load_spec

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = ("", "splits", "data_splits", "data/data_splits", "split")
Entries = dict[str, list[tuple[str, int]]]  # part -> (path below the image folder, label)
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
    inner = [home / name for home in homes for name in list_folder(home)[0] if name_key(name) in known]
    inner = [place for outer in inner for place in (outer, outer / outer.name) if place.is_dir()]
    domains = spec.domain_keys(letters=False)
    for place in inner if list_folders else [*inner, *homes]:
        stems = {name.lower().removesuffix(".txt"): place / name
                 for name in list_folder(place)[1] if name.lower().endswith(".txt")}  # fmt: skip
        matches = []
        for endings in families:
            lists: dict[str, dict[str, Path]] = {}
            for part, ending in endings.items():
                for stem, path in stems.items():
                    domain = domains.get(name_key(stem.removesuffix(f"_{ending}")))
                    if stem.endswith(f"_{ending}") and domain is not None:
                        lists.setdefault(domain, {})[part] = path
            matches.append(lists)
        if best := max(matches, key=lambda lists: sum(map(len, lists.values()))):
            return best
    return {}


def split_line(line: str, path: Path, number: int) -> tuple[str, int]:
    """Path and label of a line of a split list, which blanks or tabs part; a UserError if it is no such line."""
    file, _, label = line.strip().replace("\t", " ").rpartition(" ")
    if not label.removeprefix("-").isdecimal() or not file.strip():
        marks = [mark for mark in ",;|" if mark in line]
        hint = f' with a blank between them, not "{marks[0]}"' if marks else ""
        raise UserError(f'{path}, line {number}: expected "domain/class/file label"{hint}, found "{line.strip()}"')
    return clean_path(file), int(label)


def read_list(path: Path, folder: Path, domain: str, spec: Spec, hint: str = "") -> list[ImageFile]:
    """Images of a domain that a split list names, in its order; `hint` ends the error on missing files.

    A line is a path and a number, split once from the right. The path may be absolute or start anywhere: its last three
    components are domain, class and file. The label comes from the class's name, so the number may count from 0 or 1.
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
        families, list_folders: see `find_lists`.
        parts: part -> what the data set calls it.
        heldout: parts tested when nothing is trained on the domain, if there are lists.
        hint: said after the error on missing files.
        selective: whether the lists are meant to leave out images; if not, those that they leave out give a warning.
    """
    found = candidates(cfg, spec)
    every = {folder: find_lists(folder, spec, families, list_folders) for folder, _ in found}
    folder, matches = next((entry for entry in found if every[entry[0]]), found[0])
    folders, lists = pick_domains(folder, matches, domains, spec), every[folder]
    if not lists:
        return holdout_layout(folder, folders, spec, split_seed(cfg))
    missing = [f"{domain} ({part})" for domain in domains for part in parts if part not in lists.get(domain, {})]
    if missing:
        paths = sorted((path for own in lists.values() for path in own.values()), key=lambda path: path.name)
        raise MissingFileError(
            f"{spec.name}: {paths[0].parent} has no split list for {listed(missing)}; it has "
            f"{listed(path.name for path in paths)}. Complete them, or move them all away to use a seeded hold-out"
        )

    def read(domain: str) -> Parts:
        own, seen = lists[domain], {}
        images = {part: read_list(own[part], folders[domain], domain, spec, hint) for part in parts}
        for part, files in images.items():
            twice = [image.key for image in files if seen.setdefault(image.key, part) != part]
            if twice:
                both = f"{own[seen[twice[0]]]} and {own[part]}"
                raise UserError(f"{len(twice)} images are in both {both}, first: {twice[0]}")
        tell_unlisted(images, folders[domain], domain, spec, logging.INFO if selective else logging.WARNING)
        return images

    names = listed(path.name for domain in domains for path in lists[domain].values())
    place = lists[domains[0]][next(iter(parts))].parent
    return Layout(f"domain/class folders in {folder} with the split lists {names} in {place}", read, parts, heldout)


def tell_unlisted(images: Mapping[str, Sequence[ImageFile]], folder: Path, domain: str, spec: Spec, level: int) -> None:
    """Log how many images of a domain's folder stand in none of its lists, and the first of them."""
    used = {image.path for files in images.values() for image in files}
    labels, (names, files) = spec.class_keys(), list_folder(folder)
    rest = [name for name in files if is_image(name)]
    for name in names:
        label = labels.get(name_key(name))
        start = "" if label is None else f"{domain}/{spec.classes[label]}/"
        home = f"{folder}{os.sep}{name}{os.sep}"
        rest += [
            f"{name}/{file}" for file in list_images(home) if home + file not in used and start + file not in spec.skip
        ]
    if rest:
        message = "%s: %d images in %s stand in no split list and are not used: %s"
        logger.log(level, message, spec.name, len(rest), folder, listed(rest, 5))


class SplitFileDataset(ListedDataset):
    """Base class of the data sets with a split file; `file` is the stem of its entry in `lists/`."""

    file = ""
    reads_split_file = True

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec(cls.file)

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        root = open_root(cfg.DATASET.ROOT, self.spec.name)
        entry = read_entry(self.file)
        folders = list(named_folders(root, (*self.spec.folders, *entry["image_folders"])))
        text, split = self.read_split(cfg, root, folders, entry)
        bases = image_bases(folders, entry["image_folders"])
        paths = [path for entries in split.values() for path, _ in entries]
        base, sample = best_base(bases, paths)
        if base is None:
            raise MissingFileError(
                f"{self.spec.name}: none of {len(sample)} files of {text} was found below {listed(bases, 4)}, "
                f"first: {sample[0]}.{contents_hint(bases)} See docs/datasets.md"
            )
        finder = FileFinder(base)
        missing = [path for path in paths if finder.find(path) is None]
        if missing:
            raise MissingFileError(
                f"{self.spec.name}: {len(missing)} of {len(paths)} files of {text} are missing in {base}, first: "
                f"{missing[0]}"
            )

        def read(pool: str) -> Parts:
            return {
                part: [ImageFile(finder.find(path), label, below(path, [base]).lstrip("/")) for path, label in entries]
                for part, entries in split.items()
            }

        parts = {part: part for part in PARTS if split.get(part)}
        return Layout(f"images in {base}, {text}", read, parts)

    def read_split(self, cfg, root: Path, folders: Sequence[Path], entry: Mapping) -> tuple[str, Entries]:
        """What to say of the split file, and its entries, of the one that is published or asked for."""
        name = entry["split_file"]
        if cfg.DATASET.get("SPLIT_FILE", ""):
            path = Path(cfg.DATASET.SPLIT_FILE).expanduser()
            if not path.is_file():
                raise MissingFileError(f"DATASET.SPLIT_FILE: {no_file(path)}")
        else:
            homes = dict.fromkeys(folder / inner for folder in [root, *folders] for inner in SPLIT_FOLDERS)
            path = next((home / name for home in homes if (home / name).is_file()), None)
        if path is None:
            link = next(item for item in entry["links"] if item["what"] == name)
            searched = listed(dict.fromkeys([root, *folders]), 4)
            raise MissingFileError(
                f"{self.spec.name}: {name} not found in {searched} nor in the folders "
                f"{listed(SPLIT_FOLDERS[1:])} there.{contents_hint([root], self.spec.folders)} "
                f"It is published at {link['url']}. Results on another split are not comparable; `dassl-clip data "
                f"verify {self.spec.name} --root {root} --make-split` makes one under another name"
            )
        entries = read_split_file(path, self.spec)
        counts = {part: len(images) for part, images in entries.items()}
        first, label, _ = entry["first_train_entry"]
        published = counts == entry["images"] and entries["train"][0] == (first, label)
        note = "as published" if published else "NOT the published split: its numbers or its first entry differ"
        return f"split file {path} ({note})", entries


def image_bases(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Folders below which listed paths may begin: those called like the image folder first."""
    keys = {name_key(name) for name in names if name}
    inner = [folder / name for folder in folders for name in list_folder(folder)[0] if name_key(name) in keys]
    return list(dict.fromkeys([*inner, *folders]))


def contents_hint(folders: Sequence[Path], names: Sequence[str] = ()) -> str:
    """What some folders hold, for an error; starts with a blank. `names`: those of the data set's archive."""
    texts = [
        f"{folder} holds {listed([*list_folder(folder)[0], *list_folder(folder)[1]], 5)}" for folder in folders[:3]
    ]
    hint = f" {'; '.join(texts)}.{packed.hint(folders[0], names)}"
    if any(name.startswith("n02") for folder in folders for name in list_folder(folder)[0]):
        hint += " Folders such as n02086646-... are those of Stanford Dogs or ImageNet, which are other data sets."
    return hint


def read_split_file(path: Path, spec: Spec) -> Entries:
    """Entries of a split file, in its order. The class name decides; labels may count from 0 or from 1.

    Refuses what is no split file, names and labels that do not fit the class list, and paths that are named twice.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = {part: [(clean_path(str(p)), int(label), str(name)) for p, label, name in data[part]]
                for part in PARTS if part in data}  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is no split file with the lists train, val and test of [path, label, class name]: {error}"
        ) from error
    if not rows.get("train") or not rows.get("test"):
        raise UserError(f"{path} has no images in train or in test; it has {listed(data)}")
    names, seen = {name_key(name): label for label, name in enumerate(spec.classes)}, set()
    first = 1 if min(label for images in rows.values() for _, label, _ in images) == 1 else 0
    entries: Entries = {}
    for part, images in rows.items():
        entries[part] = []
        for file, label, name in images:
            expected = names.get(name_key(name))
            if expected is None or label - first != expected:
                known = spec.classes[label - first] if 0 <= label - first < len(spec.classes) else "no class"
                raise UserError(
                    f'{path}: label {label} of {file} is "{name}", expected "{known}" of {spec.name}: this is the '
                    "split of another data set, or one with another order of classes"
                )
            if file in seen:
                raise UserError(f"{path} names {file} twice")
            seen.add(file)
            entries[part].append((file, expected))
    return entries
