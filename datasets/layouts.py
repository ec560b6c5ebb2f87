"""Finding a data set below DATASET.ROOT, and the layouts that several data sets share.

Layouts: domain/class folders with a seeded hold-out, and a folder for each part of a split. Listed files: a path of a
list is looked for below a folder, whether it is written from there (`a/b.jpg`, `./a//b.jpg`, `a\\b.jpg`) or from the
top of the disk; where the disk has it in another letter case, or in a folder that is nested once too often
(`cars_train/cars_train/00001.jpg`), that file is meant.
"""

import itertools
import logging
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.image_formats import is_image

from . import packed
from .base import Layout, Parts, split_again
from .folders import (
    SPLIT_FOLDERS,
    WRAPPERS,
    NoFoldersError,
    check_classes,
    list_folder,
    open_root,
    read_classes,
    walk_folders,
)
from .spec import Spec, listed

logger = logging.getLogger(__name__)

MOST = 2000  # folders looked into, for an error
SAMPLE = 40  # listed files that are looked for, for an error


def match_domains(folder: Path, spec: Spec) -> dict[str, list[Path]]:
    """Sub-folders that are named like a domain: canonical domain -> its folders (more than one if spellings clash)."""
    keys, domains = spec.domain_keys(letters=False), {}
    for name in list_folder(folder)[0]:
        domain = keys.get(name_key(name))
        if domain is not None:
            domains.setdefault(domain, []).append(folder / name)
    return domains


def find_candidates(root: Path, spec: Spec) -> list[tuple[Path, dict[str, list[Path]]]]:
    """Folders that hold domain folders, best first: most domains, then least depth, then name."""
    candidates = [(folder, match_domains(folder, spec)) for folder in named_folders(root, spec.folders, depth=3)]
    candidates = [(folder, domains) for folder, domains in candidates if domains]
    return sorted(candidates, key=lambda entry: (-len(entry[1]), len(entry[0].parts), entry[0]))


def candidates(cfg, spec: Spec) -> list[tuple[Path, dict[str, list[Path]]]]:
    """`find_candidates` in DATASET.ROOT; only those with the most domains, of which there must be one."""
    root = open_root(cfg.DATASET.ROOT, spec.name)
    if found := find_candidates(root, spec):
        return [entry for entry in found if len(entry[1]) == len(found[0][1])]
    inside = [f"{root.name}/ itself", *(f"{name}/" for name in spec.folders)]
    wrappers = ", ".join(f"{wrapper}/" for wrapper in WRAPPERS)
    message = (
        f"{spec.name} not found in {root}. Looked for the folders {listed(spec.domains)} in {', '.join(inside)} "
        f"(any letter case, blanks, _ and - alike) and in {wrappers} inside them. "
        f"{root} holds {listed([*list_folder(root)[0], *list_folder(root)[1]])}."
    )
    least = min(2, len(spec.domains))
    folders = itertools.islice(walk_folders(root, depth=4), MOST)
    nested = next((folder for folder in folders if len(match_domains(folder, spec)) >= least), None)
    if nested is not None:
        message += f" Folders of that kind lie in {nested}: set DATASET.ROOT to {nested}."
    else:
        message += packed.hint(root, spec.folders)
    raise NoFoldersError(f"{message} Nothing is downloaded; see docs/datasets.md")


def pick_domains(folder: Path, found: Mapping[str, list[Path]], needed: Sequence[str], spec: Spec) -> dict[str, Path]:
    """One folder for each needed domain; domains that are absent but not needed give a warning."""
    missing = [domain for domain in needed if domain not in found]
    if missing:
        raise MissingFileError(
            f"{spec.name}: {folder} has no folder for {', '.join(missing)}. Domains found: "
            f"{listed(paths[0].name for paths in found.values())}; all folders in it: {listed(list_folder(folder)[0])}."
            f"{packed.hint(folder, missing)}"
        )
    for domain in needed:
        if len(found[domain]) > 1:
            names = ", ".join(path.name for path in found[domain])
            raise UserError(f"{spec.name}: {folder} has {len(found[domain])} folders for the domain {domain}: {names}")
    absent = [domain for domain in spec.domains if domain not in found]
    if absent:
        logger.warning("%s: %s has no folder for %s, which this run does not use", spec.name, folder, ", ".join(absent))
    return {domain: found[domain][0] for domain in needed}


def named_folders(root: Path, names: Iterable[str], depth: int = 4) -> Iterator[Path]:
    """The root, then the folders in it that are called like one of the names, and so on inside those.

    The names are those that a data set's folder, or a folder inside it, may have; `WRAPPERS` may be inside any.
    """
    keys, level = {name_key(name) for name in (*names, *WRAPPERS)}, [root]
    for _ in range(depth + 1):
        yield from level
        level = [folder / name for folder in level for name in list_folder(folder)[0] if name_key(name) in keys]


def find_place(
    cfg, spec: Spec, fits: Callable[[Path], bool], looked_for: str, names: Sequence[str] = (), hint: str = ""
) -> Path:
    """The first folder in DATASET.ROOT that looks like that of a data set without domains.

    Args:
        cfg: for the root.
        spec: names of the data set and its folders.
        fits: whether a folder looks like it.
        looked_for: what makes a folder look like it, for the error.
        names: further folder names to go through.
        hint: said at the end of the error.
    """
    root = open_root(cfg.DATASET.ROOT, spec.name)
    seen = []
    for place in named_folders(root, (*spec.folders, *names)):
        if fits(place):
            return place
        seen.append(place)
    inside = "; ".join(
        f"{place} holds {listed([*list_folder(place)[0], *list_folder(place)[1]])}" for place in seen[:4]
    )
    nested = next((folder for folder in itertools.islice(walk_folders(root, depth=5), MOST) if fits(folder)), None)
    if nested is None:
        elsewhere = packed.hint(root, spec.folders)
    else:
        elsewhere = f" It lies in {nested}: set DATASET.ROOT to {nested}."
    raise NoFoldersError(
        f"{spec.name} not found in {root}. Looked for {looked_for} in {root.name}/ itself and in folders called "
        f"{listed(spec.folders)} (any letter case, blanks, _ and - alike). {inside}.{hint}{elsewhere} Nothing is "
        "downloaded; see docs/datasets.md"
    )


def holdout_layout(
    where: Path, folders: Mapping[str, Path], spec: Spec, seed: int, complete: bool = True, note: str = ""
) -> Layout:
    """domain/class/image without splits: 80 % of each class train, 20 % val; a held-out target is tested as a whole.

    `where` holds the `folders` of the domains; `complete`: whether each domain must have every class.
    """

    def read(domain: str) -> Parts:
        return {"train": read_classes(folders[domain], domain, spec, complete=complete)}

    whole = Layout(f"domain/class folders in {where}{note}, no split lists", read, {"train": "all"})
    return split_again(whole, seed, how="")


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

    def read(domain: str) -> Parts:
        home = folders[domain]
        inside: dict[str, Path] = {}
        for name in list_folder(home)[0]:
            if name.lower() in inside and name.lower() in parts.values():
                twin = inside[name.lower()].name
                raise UserError(f"{home} has two folders for the part {name.lower()}: {twin}, {name}")
            inside[name.lower()] = home / name
        missing = [name for name in parts.values() if name not in inside]
        if missing:
            raise MissingFileError(
                f"{spec.name}: no {'/, '.join(missing)}/ in {home}; "
                f"it holds {listed(path.name for path in inside.values())}.{packed.hint(home, missing)}"
            )
        other = [path.name for name, path in inside.items() if name not in SPLIT_FOLDERS]
        other += [name for name in list_folder(home)[1] if is_image(name)]
        if other:
            message = "%s: %s holds more than the folders of its parts, not read: %s"
            logger.warning(message, spec.name, home, listed(other))
        images = {
            part: read_classes(inside[name], f"{domain}/{name}", spec, label_prefix, complete=False)
            for part, name in parts.items()
        }
        labels = {image.label for files in images.values() for image in files}
        check_classes(home, spec, labels)
        for part, files in images.items():
            absent = sorted(labels - {image.label for image in files})
            if absent:
                names = listed(spec.classes[label] for label in absent)
                logger.warning("%s: %s has no images of %s", spec.name, inside[parts[part]], names)
        return images

    return Layout(f"domain/{'|'.join(parts.values())}/class folders in {where}{note}", read, parts, heldout)


def clean_path(path: str) -> str:
    """A listed path with `/` between its steps and without `.`, `..` and empty steps."""
    path = posixpath.normpath(path.strip().replace("\\", "/"))
    return path[1:] if path.startswith("//") else path


def below(path: str, folders: Iterable[Path]) -> str:
    """An absolute path from the first of some folders on that it lies in; any other path as it is."""
    if path.startswith("/"):
        for folder in folders:
            for top in dict.fromkeys((str(folder), os.path.realpath(folder))):
                if path.startswith(f"{top}/"):
                    return path[len(top) + 1 :]
    return path


class FileFinder:
    """Paths of listed files below a folder, by reading each folder once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, Path | None] = {"": base}
        self._names: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}

    def find(self, path: str) -> str | None:
        """Where the file lies that a list calls by a clean `path`, or None."""
        if path.startswith("../"):
            place = os.path.normpath(self.base / path)
            return place if os.path.isfile(place) else None
        path = below(path, [self.base]).lstrip("/")
        parent, _, name = path.rpartition("/")
        folder = self._folder(parent)
        while folder is not None:
            _, files = self._listing(folder)
            match = files.get(name) or files.get(name.casefold())
            if match is not None:
                return os.path.join(folder, match)
            folder = self._inner(folder)
        return None

    def _folder(self, path: str) -> Path | None:
        if path not in self._folders:
            parent, _, name = path.rpartition("/")
            above, place = self._folder(parent), None
            while above is not None and place is None:
                folders, _ = self._listing(above)
                match = folders.get(name) or folders.get(name.casefold())
                place, above = (above / match, None) if match is not None else (None, self._inner(above))
            self._folders[path] = place
        return self._folders[path]

    def _inner(self, folder: Path) -> Path | None:
        """The sub-folder that is called like the folder itself."""
        name = self._listing(folder)[0].get(folder.name)
        return folder / name if name is not None else None

    def _listing(self, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
        """Sub-folders and files by name, and by name in lower case."""
        if folder not in self._names:
            self._names[folder] = tuple(
                {**{name.casefold(): name for name in reversed(names)}, **{name: name for name in names}}
                for names in list_folder(folder)
            )
        return self._names[folder]


def best_base(bases: Sequence[Path], paths: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The first folder below which most of a sample of listed files lie, or None, and the sample's paths.

    The sample has `SAMPLE` paths or a few more, spread evenly over the list.
    """
    sample = list(paths[:: max(1, len(paths) // SAMPLE)])
    counts = [sum(finder.find(path) is not None for path in sample) for finder in map(FileFinder, bases)]
    if not any(counts):
        return None, sample
    return bases[counts.index(max(counts))], sample
