"""The layouts of copies from the Hugging Face hub (`tables.py`), for the loaders that read folders.

Classes go by name, as folders do: the numbers in a copy count in an order of their own. A published data set whose
copy has numbers alone, or names of another kind, is read if `lists/` says in which order they count (`hub_numbers`);
with any other copy the load is refused, since a wrong order is a wrong accuracy without a word. Keys and order of the
images are those of the folders where the copy has the names of the files, so that draws and records are the same.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dassl_clip.results.data_sets import entries, name_key, read_entry
from dassl_clip.results.errors import MissingFileError, UserError

from .class_names import class_file, classes_of_folders, lines_of, with_file
from .folders import ImageFile
from .options import split_seed
from .parts import WHOLE, Layout, Parts, split_again
from .spec import PARTS, Spec, listed
from .tables import DOMAIN, LABEL, Copy, Row, find_copy

logger = logging.getLogger(__name__)

OWN_NAMES = "classnames.txt"


@dataclass(frozen=True)
class TableParts:
    """How a loader reads a copy.

    Args:
        parts: part of the copy -> part of the layout.
        heldout: parts of the layout that are tested when nothing is trained on the domain; all if none is there.
        needed: parts that the layout must have.
        whole: whether all parts are put together, for a data set without a published split.
        prefix: part of the layout -> how the keys of its images begin, in a data set without domains.
    """

    parts: Mapping[str, str] = field(default_factory=lambda: {part: part for part in PARTS})
    heldout: tuple[str, ...] = ("test",)
    needed: tuple[str, ...] = ()
    whole: bool = False
    prefix: Mapping[str, str] = field(default_factory=dict)


def published_layout(cfg, spec: Spec, pools: Sequence[str], rule: TableParts) -> tuple[Spec, Layout] | None:
    """The layout of a published data set's copy in DATASET.ROOT with the facts that hold of it; None without a copy.

    Args:
        cfg: for the root and the seed.
        spec: class list and domains.
        pools: canonical names of the domains needed, or `[""]`.
        rule: how parts are used.

    Raises:
        UserError: classes or domains are not those of the data set, or what is needed is not there.
    """
    root = Path(cfg.DATASET.ROOT or ".").expanduser().absolute()
    entry = next((entry for entry in map(read_entry, entries()) if entry["name"] == spec.name), {})
    mirrors = [link["url"].rpartition("/")[2] for link in entry.get("mirrors", ())]
    copy = find_copy(root, (*spec.folders, *mirrors))
    if copy is None:
        return None
    label, note = published_labels(copy, spec, entry)
    if spec.domains and DOMAIN not in copy.columns:
        raise UserError(f"{spec.name}: {copy.text} has the columns {listed(copy.columns)}, and no {DOMAIN}")
    keys, domains = spec.domain_keys(), {}
    for name in dict.fromkeys(row.domain for row in copy.rows) if spec.domains else ():
        domains[name] = keys.get(name_key(name))
        if domains[name] is None:
            raise UserError(f'{spec.name}: {copy.text} has the {DOMAIN} "{name}"; expected are {listed(spec.domains)}')
    images = images_of(copy, spec, label, lambda row: domains.get(row.domain, WHOLE), rule)
    for pool in pools:
        for part, files in images.get(pool, {}).items():
            missing = sorted(set(range(len(spec.classes))) - {image.label for image in files})
            if missing and (not spec.domains or rule.whole or len(images[pool]) == 1):
                names = listed(spec.folder_names[label] for label in missing)
                raise MissingFileError(f"{spec.name}: {copy.text} has no {part} images of {names}{_of(pool)}")
        if not images.get(pool):
            raise MissingFileError(f"{spec.name}: {copy.text} has no images{_of(pool)}; it has {listed(images)}")
    if spec.skip and any(not row.file for row in copy.rows):
        names = listed(sorted(spec.skip))
        message = "%s: %s has no names of files, so that %s, which is known to be damaged, is not left out"
        logger.warning(message, spec.name, copy.text, names)
        spec = replace(spec, skip=frozenset())
    return spec, layout_of(cfg, copy, spec, images, rule, note)


def _of(pool: str) -> str:
    return f" of {pool}" if pool else ""


def published_labels(copy: Copy, spec: Spec, entry: Mapping) -> tuple[Callable[[Row], int], str]:
    """The label of a row of a published data set, and a note on how it is known."""
    keys = spec.class_keys()
    names = copy.names or tuple(dict.fromkeys(row.name for row in copy.rows if row.name))
    unknown = [name for name in names if name_key(name) not in keys]
    if names and not unknown:
        return (lambda row: keys[name_key(row.name)]), "classes by name"
    numbered = copy.names is None and not names
    if entry.get("hub_numbers") and (numbered or agree(copy.names or (), spec)):
        most = max((row.number for row in copy.rows), default=0)
        if most < len(spec.classes):
            return (lambda row: row.number), f"labels are {entry['hub_numbers']}"
        raise UserError(f"{spec.name}: {copy.text} has the label {most}, but there are {len(spec.classes)} classes")
    if numbered:
        raise UserError(
            f"{spec.name}: the labels of {copy.text} are numbers, and nothing says which class each of them is: the "
            "files have no class names in their description (ClassLabel), and no order of such a copy is known. Get a "
            f"copy with class names, or read it by DATASET.NAME FolderDomains with {OWN_NAMES} beside it"
        )
    raise UserError(
        f'{spec.name}: {copy.text} has the class "{unknown[0]}", which is none of the {len(spec.classes)} classes '
        f"({listed(spec.folder_names, 4)}), and {len(unknown) - 1} more that are unknown: it is another data set"
    )


def agree(names: Sequence[str], spec: Spec) -> bool:
    """Whether names of another kind stand in the order of the class list: most share a word with the class there."""
    words = [[set(re.findall(r"\w+", text.casefold())) for text in texts] for texts in (names, spec.classes)]
    return len(names) == len(spec.classes) and 2 * sum(bool(a & b) for a, b in zip(*words)) > len(names)


def images_of(
    copy: Copy, spec: Spec, label: Callable[[Row], int], pool: Callable[[Row], str], rule: TableParts
) -> dict[str, Parts]:
    """Images by pool and part, in label order and sorted by name inside a class."""
    several = not rule.whole and len({row.part for row in copy.rows}) > 1
    found: dict[str, Parts] = {}
    entries = []
    for row in copy.rows:
        part = "train" if rule.whole or not row.part else rule.parts.get(row.part)
        if part is None:
            raise UserError(f"{spec.name}: {copy.text} has the part {row.part}; expected are {listed(rule.parts)}")
        steps = (
            [pool(row), part if several else ""] if pool(row) else [rule.prefix.get(part, part if several else "all")]
        )
        entries.append((row, pool(row), part, "/".join([*filter(None, steps), spec.key_names[label(row)], ""])))
    named = Counter(home + row.file for row, _, _, home in entries)
    by_file = all(row.file for row, *_ in entries) and len(named) == len(entries)
    for row, where, part, home in entries:
        key = home + (row.file if by_file else Path(row.path).name)
        if key not in spec.skip:
            found.setdefault(where, {}).setdefault(part, []).append(ImageFile(row.path, label(row), key))
    for parts in found.values():
        for images in parts.values():
            images.sort(key=lambda image: (image.label, image.key))
    return found


def layout_of(cfg, copy: Copy, spec: Spec, images: Mapping[str, Parts], rule: TableParts, note: str) -> Layout:
    """The layout of images by pool and part."""
    parts = [part for part in PARTS if any(part in lists for lists in images.values())]
    if missing := [part for part in rule.needed if part not in parts]:
        theirs = {ours: part for part, ours in rule.parts.items()}
        raise MissingFileError(
            f"{spec.name}: {copy.text} has no part {listed(theirs[part] for part in missing)} (files such as "
            f"{theirs[missing[0]]}-00000-of-00001.parquet); it has {listed(parts)}"
        )

    def read(pool: str) -> Parts:
        return {part: list(images[pool].get(part, ())) for part in parts}

    text = f"{copy.text} ({note})"
    if len(parts) == 1 and (spec.domains or parts != ["test"]):
        whole = Layout(f"{text}, no split", lambda pool: {"train": images[pool][parts[0]]}, {"train": "all"})
        return split_again(whole, split_seed(cfg), how="")
    heldout = tuple(part for part in rule.heldout if part in parts) or tuple(parts)
    return Layout(f"{text}, parts {', '.join(parts)}", read, {part: part for part in parts}, heldout)


def own_copy(cfg, dataset: str, domains: bool) -> tuple[Spec, Copy] | None:
    """Classes and domains of a user's own copy in DATASET.ROOT, or None if there is none.

    Raises:
        UserError: the copy has no domains, or labels that are numbers without a name.
    """
    root = Path(cfg.DATASET.ROOT).expanduser().absolute()
    copy = find_copy(root)
    if copy is None:
        return None
    if not copy.rows:
        raise UserError(f"{dataset}: no image of {copy.text} has a label")
    if domains and DOMAIN not in copy.columns:
        raise UserError(
            f"{dataset}: {copy.text} has the columns {listed(copy.columns)}, and no {DOMAIN}: it is read by "
            "DATASET.NAME FolderClasses"
        )
    if not domains and DOMAIN in copy.columns:
        logger.warning("%s: the domains of %s are not told apart; DATASET.NAME FolderDomains does", dataset, copy.text)
    path = class_file(cfg, [root, copy.home])
    if not copy.rows[0].name:
        copy = replace(
            copy, rows=tuple(row._replace(name=numbered_names(copy, dataset, path)[row.number]) for row in copy.rows)
        )
    names = dict.fromkeys(row.name for row in copy.rows)
    if wrong := [name for name in names if not name.isprintable() or not name]:
        raise UserError(f"{dataset}: {copy.text} has the class {wrong[0]!r}, which can stand in no prompt")
    spec = with_file(classes_of_folders({copy.home: sorted(names)}, dataset), path)
    if domains:
        there = sorted({row.domain for row in copy.rows})
        if wrong := [name for name in there if not name or "/" in name]:
            raise UserError(f"{dataset}: {copy.text} has the {DOMAIN} {wrong[0]!r}, which is no name of a folder")
        spec = replace(spec, domains=dict.fromkeys(there, ()))
    return spec, copy


def numbered_names(copy: Copy, dataset: str, path: Path | None) -> list[str]:
    """The names, one a line, of the classes of a copy whose labels are numbers."""
    most = max(row.number for row in copy.rows)
    if path is None:
        raise UserError(
            f"{dataset}: the labels of {copy.text} are numbers from 0 to {most} without class names: put {OWN_NAMES} "
            "beside the files, or name one by DATASET.CLASSNAMES, with the name of each class in the order of numbers"
        )
    names = lines_of(path)
    if len(names) <= most:
        raise UserError(f"{path} names {len(names)} classes, but {copy.text} has the {LABEL} {most}, counted from 0")
    return names


def own_layout(cfg, spec: Spec, copy: Copy, rule: TableParts) -> Layout:
    """The layout of a user's own copy."""
    keys = spec.class_keys()
    if not spec.domains and {row.part for row in copy.rows} == {"val"}:
        rule = replace(rule, parts={"val": "test"})
    pool = (lambda row: row.domain) if spec.domains else (lambda row: WHOLE)
    images = images_of(copy, spec, lambda row: keys[name_key(row.name)], pool, rule)
    for domain, parts in images.items():
        present = {image.label for files in parts.values() for image in files}
        if absent := [name for label, name in enumerate(spec.classes) if label not in present]:
            logger.warning("%s: %s has no images of %s%s", spec.name, copy.text, listed(absent), _of(domain))
    note = f"class list: {getattr(spec.names_file, 'name', 'the names in it, sorted')}"
    return layout_of(cfg, copy, spec, images, rule, note)
