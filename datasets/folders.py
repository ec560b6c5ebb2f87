"""Reading folders: names in sorted order, whatever the disk's, and class folders under their many spellings."""

import csv
import hashlib
import logging
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import check_regular, kind_of, no_file
from dassl_clip.results.image_formats import IGNORED_FOLDERS, IMAGE_EXTENSIONS, is_image

from .spec import Spec, listed

logger = logging.getLogger(__name__)

UNREAD_IMAGES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpe", ".pnm", ".pbm", ".svg", ".psd", ".tga")
UNREAD_IMAGES += (".ico", ".exr", ".hdr", ".dcm", ".dng", ".nef", ".cr2", ".arw", ".raw", ".npy")
NOTES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".xml", ".yaml", ".yml", ".html", ".htm", ".pdf", ".log")
NOTES += (".py", ".sh", ".ipynb", ".mat", ".pkl", ".db", ".ini", ".cfg", ".rst", ".docx", ".xlsx")
SPLIT_FOLDERS = ("train", "crossval", "val", "test", "full")
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "crossval", "dev"),
    "test": ("test", "testing"),
}
PART_KEYS = {name_key(name): part for part, names in PART_NAMES.items() for name in names}
WRAPPERS = ("images", "kfold", "data")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
LABEL_PREFIX = re.compile(r"^\d{3}_(?=.)")


class NoFoldersError(MissingFileError):
    """A root without any folder of the data set that is asked for."""


class ImageFile(NamedTuple):
    """One image: where it lies, its label, and `domain/.../class/file` in canonical names."""

    path: str
    label: int
    key: str


Listing = tuple[list[str], list[str], bool]  # sorted names of folders and of files, and whether links are among them
_listings: ContextVar[dict[str, Listing] | None] = ContextVar("listings", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """A context in which each folder is listed once, however often the layouts look into it."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def list_folder(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Sorted names of the sub-folders and files of a folder but for hidden ones; refuses images that are no files."""
    folders, files, _ = _listing(folder)
    return list(folders), list(files)


def holds_links(folder: str | os.PathLike) -> bool:
    """Whether links are among the entries of a folder."""
    return _listing(folder)[2]


def _listing(folder: str | os.PathLike) -> Listing:
    path, listings = os.fspath(folder), _listings.get()
    if listings is not None and path in listings:
        return listings[path]
    folders, files, links = [], [], False
    with os.scandir(path) as entries:  # asks the disk about folders, not about each file
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED_FOLDERS:
                continue
            links = links or entry.is_symlink()
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                files.append(entry.name)
            elif is_image(entry.name):
                raise MissingFileError(f"{no_file(entry.path)}; remove it, or put the image in its place")
    listing = sorted(folders), sorted(files), links
    if listings is not None:
        listings[path] = listing
    return listing


def listing_hash(images: Iterable[ImageFile]) -> str:
    """sha256 (hex) over the sorted lines "path, label" of images; paths start at the domain, in canonical names."""
    digest = hashlib.sha256()
    for line in sorted(f"{image.key}\t{image.label}\n" for image in images):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """The text of a list file; a UserError if it is not UTF-8, or no regular file."""
    check_regular(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8 (byte {error.start}); save it as UTF-8") from error


@contextmanager
def readable_csv(path: Path) -> Iterator[None]:
    """A context in which what Python's reader of csv refuses (cells too long, zero bytes) is said of the file."""
    try:
        yield
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a csv file ({error}); save it as plain text in UTF-8") from error


def unpack_command(path: Path) -> str:
    """The command that unpacks an archive into its own folder."""
    name, file, folder = path.name.lower(), shlex.quote(str(path)), shlex.quote(str(path.parent))
    if ".tar" in name or name.endswith(".tgz"):
        return f"tar -xf {file} -C {folder}"
    programs = {".zip": f"unzip {file} -d {folder}", ".7z": f"7z x {file} -o{folder}"}
    programs |= {".rar": f"unrar x {file} {folder}/", ".gz": f"gunzip -k {file}"}
    return (programs | {".bz2": f"bunzip2 -k {file}", ".xz": f"unxz -k {file}"})[path.suffix.lower()]


def list_images(folder: str | os.PathLike) -> list[str]:
    """Sorted image names of a folder; a warning tells of sub-folders, whose images are not read."""
    folders, files = list_folder(folder)
    if folders:
        logger.warning("%s: its sub-folders are not read: %s", folder, listed(folders))
    return [name for name in files if is_image(name)]


def why_unread(folder: Path) -> str:
    """Why a class folder gives no image: they lie deeper, or end otherwise; empty for notes and lists."""
    folders, files = list_folder(folder)
    for place in [inner for name in folders for inner in walk_folders(folder / name, depth=3)]:
        if image := next(filter(is_image, list_folder(place)[1]), None):
            return f"its images lie deeper, the first in {place.relative_to(folder) / image}"
    others = [name for name in files if not name.lower().endswith((*NOTES, *ARCHIVES))]
    if others:
        endings = dict.fromkeys(Path(name).suffix.lower() or "nothing" for name in others)
        return f"{len(others)} of its {len(files)} files end in {listed(endings, 4)}, which is not read"
    return "" if folders or files else "it is empty"


def check_read(folders: Mapping[Path, bool], option: str, dataset: str) -> None:
    """Refuse class folders that give no image and so would leave the class list, or warn of them.

    Args:
        folders: folder -> whether it matters if it is empty.
        option: DATASET.ON_UNREAD_CLASS, `error` or `skip`.
        dataset: registry name.
    """
    if option not in ("error", "skip"):
        raise UserError(f'DATASET.ON_UNREAD_CLASS is "{option}"; it must be error or skip')
    texts = [
        f"{folder} ({reason})"
        for folder, matters in folders.items()
        if (reason := why_unread(folder)) and (matters or list_folder(folder) != ([], []))
    ]
    if not texts:
        return
    message = f"{dataset}: no image is read from the class folder{'' if len(texts) == 1 else 's'} {listed(texts, 4)}"
    if option == "error":
        raise MissingFileError(
            f"{message}; read are files that end in {' '.join(IMAGE_EXTENSIONS)} and lie in the class folder itself. "
            "Convert or move them, or leave such folders out by DATASET.ON_UNREAD_CLASS skip"
        )
    logger.warning("%s, which is no class then (DATASET.ON_UNREAD_CLASS skip)", message)


def open_root(root: str, name: str) -> Path:
    """The folder DATASET.ROOT as a path; a UserError if it is empty or no folder."""
    if not root:
        raise UserError(f"DATASET.ROOT is empty: give the folder that holds {name} (--root)")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        if path.exists():
            packed = path.is_file() and path.name.lower().endswith(ARCHIVES)
            kind = f"an archive: unpack it ({unpack_command(path)}), and" if packed else f"{kind_of(path)}:"
            raise MissingFileError(f"DATASET.ROOT {path} is {kind} give the folder that holds {name}")
        parent = next(folder for folder in path.parents if folder.is_dir())
        raise MissingFileError(
            f"DATASET.ROOT {path} is not a folder; the part of it that exists is {parent}, "
            f"which holds {listed(list_folder(parent)[0])}. Nothing is downloaded; see docs/datasets.md"
        )
    return path


def walk_folders(root: Path, depth: int) -> Iterator[Path]:
    """Folders below and including the root, level by level, without those that cannot be read."""
    level = [root]
    for _ in range(depth + 1):
        following = []
        for folder in level:
            try:
                names = list_folder(folder)[0]
            except OSError:
                continue
            yield folder
            following += [folder / name for name in names]
        level = following


def match_classes(folder: Path, spec: Spec, label_prefix: bool = False) -> dict[int, Path]:
    """Class folders inside a folder: label -> folder. Folders that are no class of the list get a warning.

    With `label_prefix` names may start with a number, such as in `000_Alarm_Clock`, which is dropped.
    """
    keys, found, extra = spec.class_keys(), {}, []
    folders, files = list_folder(folder)
    for name in folders:
        label = keys.get(name_key(LABEL_PREFIX.sub("", name) if label_prefix else name))
        if label is None:
            extra.append(name)
        elif label in found:
            raise UserError(
                f"{folder} has two folders for the class {spec.classes[label]}: {found[label].name}, {name}"
            )
        else:
            found[label] = folder / name
    if extra:
        logger.warning("%s: %s holds folders that are no class and are not read: %s", spec.name, folder, listed(extra))
    loose = [name for name in files if is_image(name)]
    if loose:
        logger.warning("%s: %s holds images outside the class folders, not read: %s", spec.name, folder, listed(loose))
    return found


def check_classes(folder: Path, spec: Spec, found: Collection[int], empty: Sequence[Path] = ()) -> None:
    """Refuse a folder in which a class of the list has no folder, or one without images."""
    names = spec.folder_names
    missing = [names[label] for label in range(len(names)) if label not in found]
    if missing:
        raise MissingFileError(
            f"{spec.name}: found {len(found)} class folder{'' if len(found) == 1 else 's'} in {folder}, "
            f"missing: {listed(missing)}.{nesting_hint(folder, spec)}"
        )
    if empty:
        raise MissingFileError(
            f"{spec.name}: no images in {listed(empty)} (files that end in {' '.join(IMAGE_EXTENSIONS)}, in any letter "
            f"case){f': {reason}' if (reason := why_unread(empty[0])) else ''}.{nesting_hint(empty[0], spec)}"
        )


def nesting_hint(folder: Path, spec: Spec) -> str:
    """What a folder without the expected class folders holds instead; starts with a blank, or is empty."""
    folders, files = list_folder(folder)
    inner = [name for name in folders if name_key(name) in (name_key(folder.name), *WRAPPERS)]
    if inner:
        return f" {folder / inner[0]} is nested once too often: move what it holds one level up."
    classes = spec.class_keys()  # a class may be called like a part: DomainNet has trains
    splits = [name for name in folders if name.lower() in SPLIT_FOLDERS and name_key(name) not in classes]
    if splits:
        return f" It holds {listed(splits)}: this is a layout with a folder for each split, which {spec.name} has not."
    images = sum(map(is_image, files))
    if images:
        return f" {images} images lie in it directly, outside any class folder."
    archives = [name for name in files if name.lower().endswith(ARCHIVES)]
    if archives:
        command = unpack_command(folder / archives[0])
        return f" It holds {listed(archives, 3)}: unpack {'it' if len(archives) == 1 else 'them'} first ({command})."
    return f" It holds {listed(folders)}." if folders else " It has no folders."


def read_classes(
    folder: Path, prefix: str, spec: Spec, label_prefix: bool = False, complete: bool = True
) -> list[ImageFile]:
    """Images of the class folders in a folder, in label order and sorted by name inside a class.

    Args:
        folder: holds one folder a class.
        prefix: canonical name of that folder, such as `sketch` or `art/train`.
        spec: class list and skip list.
        label_prefix: see `match_classes`.
        complete: whether every class must be there with at least one image.
    """
    found = match_classes(folder, spec, label_prefix)
    images, empty, unread = [], [], []
    for label in sorted(found):
        names = list_images(found[label])
        if not names:
            empty.append(found[label])
        files = list_folder(found[label])[1]
        if len(names) < len(files):
            unread += [f"{found[label].name}/{file}" for file in files if file.lower().endswith(UNREAD_IMAGES)]
        home, key_home = f"{found[label]}{os.sep}", f"{prefix}/{spec.key_names[label]}/"
        images += [ImageFile(home + name, label, key_home + name) for name in names if key_home + name not in spec.skip]
    if complete:
        check_classes(folder, spec, list(found), empty)
    if unread:
        logger.warning("%s: %d files in %s are not read: %s", spec.name, len(unread), folder, listed(unread, 4))
    return images
