"""The class names that prompts say: those of a published list, of a user's file, or of the class folders.

DATASET.CLASSNAMES names a file for any data set; `classnames.txt` beside the class folders is one for a user's own. Its
lines are one of

- `folder<TAB>name`, or CoOp's `n01440764 tench` where all folders are wnids or numbers: a class folder and its name, in
  any order;
- plain names, one for each class in label order. Where they are the class folders themselves (letter case, blanks, `_`
  and `-` alike), their order is the label order of a user's own data set.

Without a file, a wnid (`n01440764`) has the name of ImageNet's published list, and a counter or a wnid before a name
(`001.Black_footed_Albatross`, `n02086646-Blenheim_spaniel`) is not said. No two classes may have one prompt.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean
from dassl_clip.results.files import no_file
from dassl_clip.results.labels import prompt_key

from .folders import read_text
from .spec import Spec, in_order, listed, load_spec

logger = logging.getLogger(__name__)

CLASS_FILE = "classnames.txt"
OPTION = "DATASET.CLASSNAMES"
WNID = re.compile(r"n\d{8}")
COUNTER = re.compile(r"(n\d{8}|\d+)(?:[\s_-]+|\s*\.\s*)(?=\D*[^\W\d_])(.+)")
NUMBER = re.compile(r"(?:class|cls|category|label|id|c)?[\W\d_]*")  # of a folded name: nothing that CLIP could know


def class_key(name: str) -> str:
    """Form in which two folders are one class: their prompts agree but for blanks and `-`."""
    return name_key(prompt_key(name))


def without_counters(names: Sequence[str]) -> dict[str, str]:
    """The names without the counter, or wnid, before each of them; as they are if it may be a part of the name.

    Counters stand before all names, and no two are equal: neither with the rest nor without it. They begin with 0, end
    in a dot, or count from 0 or 1 on; so years and model numbers stay.
    """
    found = {name: COUNTER.fullmatch(name) for name in names}
    parts = [(match[1], match[2]) for match in found.values() if match]
    counters, rests = [counter for counter, _ in parts], {class_key(rest) for _, rest in parts}
    if not names or len(parts) < len(names) or len(set(counters)) < len(names) or len(rests) < len(names):
        return {name: name for name in names}
    numbers = sorted(int(counter) for counter in counters if counter.isdecimal())
    if numbers and not (
        any(counter.startswith("0") for counter in counters)
        or all(name[len(counter) :].lstrip().startswith(".") for name, counter in zip(found, counters))
        or numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    ):
        return {name: name for name in names}
    return {name: rest for name, (_, rest) in zip(found, parts)}


def classes_of_folders(found: Mapping[Path, Sequence[str]], dataset: str) -> Spec:
    """The classes of a user's class folders by parent folder, in label order, without domains.

    Folders of several parents whose names are spellings of one name, with or without a counter, are one class, called
    by the first spelling; an info line names them. Two folders of one parent that are one class are refused.
    """
    spellings: dict[str, dict[str, str]] = {}
    for parent, folders in found.items():
        seen: dict[str, str] = {}
        for folder, name in without_counters(folders).items():
            other = seen.setdefault(class_key(name), folder)
            if other != folder:
                raise UserError(
                    f'{dataset}: "{other}" and "{folder}" in {parent} are one name when letter case, blanks, _ and - '
                    "are left aside; rename one, or put their images into one folder"
                )
            spellings.setdefault(class_key(name), {})[folder] = name
    groups = [sorted(group) for group in spellings.values()]
    if merged := [" = ".join(f'"{name}"' for name in group) for group in groups if len(group) > 1]:
        logger.info("%s: folders that are spellings of one class are one class: %s", dataset, listed(merged))
    others = {first: tuple(rest) for first, *rest in groups}
    said = {first: spellings[key][first] for key, (first, *_) in zip(spellings, groups)}
    return Spec(name=dataset, classes=tuple(in_order(said)), domains={}, class_folders=others, said=said)


def class_file(cfg, folders: Iterable[Path] = ()) -> Path | None:
    """The file that DATASET.CLASSNAMES names, or the `classnames.txt` in one of some folders.

    Raises:
        MissingFileError: if the file that is asked for is not there.
        UserError: if two of the folders have different files.
    """
    asked = cfg.DATASET.get("CLASSNAMES", "")
    if asked:
        path = Path(asked).expanduser()
        below = Path(cfg.DATASET.ROOT).expanduser().absolute() / path
        path = below if cfg.DATASET.ROOT and below.is_file() else path.absolute()
        if not path.is_file():
            raise MissingFileError(f"{OPTION}: {no_file(path)}; it holds the class names, one a line")
        return path
    there = [folder / CLASS_FILE for folder in dict.fromkeys(folders) if (folder / CLASS_FILE).is_file()]
    for path in there[1:]:
        if path.read_bytes() != there[0].read_bytes():
            raise UserError(f"{there[0]} and {path} name the classes differently; keep one, or set {OPTION}")
    return there[0] if there else None


def lines_of(path: Path) -> list[str]:
    """The lines of a file of class names, without empty ones; a UserError if there are none."""
    lines = [line.strip(" \r\n") for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; it holds the class names, one a line")
    return lines


def with_file(spec: Spec, path: Path | None) -> Spec:
    """A user's own classes with a file of names: in its order, if its lines are the classes themselves."""
    if path is None:
        return spec
    classes = {class_key(name): folder for folder, name in spec.said.items()}
    keys = [class_key(line) for line in lines_of(path)]
    same = len(keys) == len(classes) and {*keys} == {*classes}
    return replace(spec, names_file=path, classes=tuple(classes[key] for key in keys) if same else spec.classes)


def read_names(path: Path, spec: Spec) -> list[str]:
    """Class names by label, of a file; refuses one in which a class has no name or two, or a line is of no class."""
    lines, labels = lines_of(path), spec.class_keys()
    folders = list(spec.folder_names)
    numbers = {folder for folder in folders if folder.isdecimal()}
    pairs = [line.split("\t") if "\t" in line else line.split(maxsplit=1) for line in lines]
    tabs = sum("\t" in line for line in lines)
    if 0 < tabs < len(lines) or any(len(pair) != 2 or not pair[1].strip() for pair in pairs if tabs):
        number = next(n for n, line in enumerate(lines, 1) if line.count("\t") != 1 or not line.split("\t")[1].strip())
        raise UserError(
            f'{path}, name {number}: expected "folder<TAB>name" as in other lines, found "{lines[number - 1]}"'
        )
    codes = [len(pair) == 2 and bool(WNID.fullmatch(pair[0]) or pair[0] in numbers) for pair in pairs]
    if not tabs and not all(codes):
        return plain_names(path, [line.strip() for line in lines], spec)
    names, shipped = {}, imagenet_names()
    for folder, name in ((folder.strip(), name.strip()) for folder, name in pairs):
        label = labels.get(name_key(folder))
        if label is None:
            if folder in shipped:  # CoOp's list has all of ImageNet's classes, also for a part of them
                continue
            raise UserError(f'{path}: there is no class folder "{folder}".{did_you_mean(folder, folders, cutoff=0.5)}')
        if label in names:
            raise UserError(f'{path} names the class folder "{folder}" twice: "{names[label]}" and "{name}"')
        names[label] = name
    refuse_missing(path, [folder for label, folder in enumerate(folders) if label not in names])
    return [names[label] for label in range(len(folders))]


def refuse_missing(path: Path, folders: Sequence[str]) -> None:
    """Refuse a file that does not name some class folders, if there are any."""
    if folders:
        raise UserError(f"{path} does not name the class folders {listed(folders)}; add them, or move the folders away")


def plain_names(path: Path, names: list[str], spec: Spec) -> list[str]:
    """Plain names as the file has them, if they stand in label order."""
    folders = list(spec.folder_names)
    places: dict[str, set[int]] = {}
    for label, (name, folder) in enumerate(zip(spec.classes, spec.folder_names)):
        for spelling in (spec.said.get(name, name), name, folder, *spec.class_folders.get(name, ())):
            places.setdefault(class_key(spelling), set()).add(label)
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(class_key(name), name) != name or names.count(name) > len(places.get(class_key(name), "1")):
            raise UserError(f'{path} names the class "{name}" twice')
    wrong = [label for label, name in enumerate(names) if label not in places.get(class_key(name), {label})]
    if len(names) == len(folders) and not wrong:
        return names
    unknown = [name for name in names if class_key(name) not in places]
    if len(unknown) == len(names):
        raise UserError(
            f"{path} holds {len(names)} names, but there are {len(folders)} classes ({listed(folders, 4)}): write one "
            "for each, in this order, or folder<TAB>name"
        )
    if unknown:
        raise UserError(
            f'{path}: there is no class folder "{unknown[0]}".{did_you_mean(unknown[0], folders, cutoff=0.5)} '
            "Names that are not the folders' are written as folder<TAB>name"
        )
    named = {label for name in seen for label in places.get(name, ())}
    pairs = [pair for label, pair in enumerate(zip(spec.classes, folders)) if label not in named]
    refuse_missing(path, [spelling for name, own in pairs for spelling in (own, *spec.class_folders.get(name, ()))])
    raise UserError(
        f'{path}: name {wrong[0] + 1} is "{names[wrong[0]]}", expected "{spec.classes[wrong[0]]}": the labels of '
        f"{spec.name} have a fixed order; write the names in it, or folder<TAB>name"
    )


def imagenet_names() -> dict[str, str]:
    """wnid -> class name, of ImageNet's published list."""
    spec = load_spec("imagenet")
    return dict(zip(spec.folder_names, spec.classes))


def prompt_names(spec: Spec, path: Path | None, root: str) -> tuple[list[str], str]:
    """The name of each class as prompts say it, and a note on where names come from that are not the data set's own.

    A file of names that does not fit is refused, and so are two classes with one prompt; `root` is for the errors.
    """
    names, notes, unsaid = list(spec.classes), [], "so that prompts such as"
    if path is not None:
        names, notes = read_names(path, spec), [f"class names of {path}"]
    elif spec.said:  # wnids by the published list, and counters left out
        shipped, wnids = imagenet_names(), [name for name in spec.classes if WNID.fullmatch(name)]
        if unknown := [name for name in wnids if name not in shipped]:
            logger.warning(
                "%s: %d class folders are wnids that ImageNet's list of 1000 classes does not name (%s), %s "
                '"a photo of a %s." say nothing: give names by %s beside the class folders (folder<TAB>name) or by '
                "%s FILE",
                *(spec.name, len(unknown), listed(unknown, 4), unsaid, unknown[0], CLASS_FILE, OPTION),
            )
        if len(wnids) > len(unknown):
            notes.append(f"class names of ImageNet's published list for {len(wnids) - len(unknown)} wnids")
        if spec.details:  # a published data set
            told = [f'"{name}" is said "{said}"' for name, said in spec.said.items() if name != said]
            notes.append(f"class {listed(told)} in prompts")
        elif any(name != said for name, said in spec.said.items()):
            notes.append("class names without the counter before them")
        names = [shipped.get(name) or spec.said[name] for name in spec.classes]
    check_prompts(names, spec, f"{spec.name}{f' in {root}' if root else ''}")
    numbers = [name for name in names if NUMBER.fullmatch(name.casefold())]
    if numbers and (path is not None or spec.said):
        logger.warning(
            '%s: %d of %d class names are bare numbers (%s), %s "a photo of a %s." say nothing: give names by %s '
            "beside the class folders (a name for each class, in the order of the numbers, or folder<TAB>name) or by "
            "%s FILE",
            *(spec.name, len(numbers), len(names), listed(numbers, 4), unsaid, numbers[0], CLASS_FILE, OPTION),
        )
    note = ", ".join(notes)
    if note:
        changed = [f"{old} = {new}" for old, new in zip(spec.folder_names, names) if old != new]
        logger.info("%s: %s%s", spec.name, note, f": {listed(changed, 4)}" if changed else "")
    return names, note


def check_prompts(names: Sequence[str], spec: Spec, where: str) -> None:
    """Refuse two classes with one prompt; two of ImageNet's own names occur twice in its published list."""
    folders, shipped, seen = spec.folder_names, None, {}
    for label, name in enumerate(names):
        other = seen.setdefault(prompt_key(name), label)
        if other == label:
            continue
        shipped = imagenet_names() if shipped is None else shipped
        if prompt_key(shipped.get(folders[other], str(other))) != prompt_key(shipped.get(folders[label], str(label))):
            raise UserError(
                f'{where}: the classes "{folders[other]}" and "{folders[label]}" have one prompt, by the names '
                f'"{names[other]}" and "{name}": give them different names, or make them one class'
            )
    empty = [folders[label] for label, name in enumerate(names) if not prompt_key(name)]
    if empty:
        raise UserError(f"{where}: the classes {listed(empty)} have no name that a prompt could say")
