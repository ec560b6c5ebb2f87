"""Labels and class names of any Dassl data set, whoever wrote its loader: whether they fit each other."""

from __future__ import annotations

import html
import logging
from numbers import Integral
from typing import Any, NoReturn

from .errors import UserError

logger = logging.getLogger(__name__)

UNLABELLED = -1  # label of an image that has none
# Soft hyphens, spaces without width, marks of direction: nobody sees them in a folder's name, and texts get tokens.
INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)


def prompt_key(name: str) -> str:
    """Form in which two class names give one prompt: `_` is a blank, and the rest is what CLIP's tokenizer cleans."""
    text = name.translate(INVISIBLE).replace("_", " ")
    if not text.isascii() or "&" in text:
        from ftfy import fix_text  # as open_clip's tokenizer has it

        text = html.unescape(html.unescape(fix_text(text)))
    return " ".join(text.split()).lower()


def check_labels(dataset: Any, name: str) -> None:
    """Refuse a data set whose labels and class names do not fit each other, whoever wrote its loader.

    Labels are whole numbers that count the names in `classnames` from 0; the names in `lab2cname` and at the images are
    the same. A class may lack images in any part. Images of a data set that is `unlabelled` have the label -1.

    Raises:
        UserError: naming the first fault.
    """
    names, lists = list(dataset.classnames), {part: getattr(dataset, part) or () for part in ("train_x", "val", "test")}
    pairs = {part: {(item.label, item.classname) for item in items} for part, items in lists.items()}

    def refuse(part: str, label: object, called: str, fault: str) -> NoReturn:
        path = next(item.impath for item in lists[part] if (item.label, item.classname) == (label, called))
        raise UserError(f"{name}: the label of {path} in {part} {fault}")

    bare = (UNLABELLED, "") if getattr(dataset, "unlabelled", False) else None
    pairs = {part: found - {bare} for part, found in pairs.items()}
    every = [(part, label, called) for part, images in pairs.items() for label, called in images]
    for part, label, called in every:
        if not isinstance(label, Integral):
            refuse(part, label, called, f"is {label!r} ({type(label).__name__}), expected a whole number")
    numbers = f"the {len(names)} classes have the labels 0 to {len(names) - 1}"
    if {label for label, _ in pairs["train_x"]} == set(range(1, len(names) + 1)):
        raise UserError(
            f"{name}: the labels of train_x are 1 to {len(names)}, but {numbers}: subtract 1 from every label in the "
            "loader"
        )
    for part, label, called in sorted(every, key=lambda entry: entry[1]):
        if not 0 <= label < max(len(names), dataset.num_classes):
            refuse(part, label, called, f"is {label}, but {numbers}")
    missing = sorted(set(range(max(len(names), dataset.num_classes))) - set(dataset.lab2cname))
    if missing or len(names) != dataset.num_classes:
        raise UserError(
            f"{name}: no class name for the label {', '.join(map(str, missing[:8])) or 'of a class'} "
            f"({dataset.num_classes} classes by num_classes, {len(names)} in classnames), so that later names would go "
            "with other labels; give num_classes, lab2cname "
            "and classnames every label from 0 on"
        )
    for label, text in enumerate(names):
        if dataset.lab2cname[label] != text:
            known = dataset.lab2cname[label]
            raise UserError(f'{name}: label {label} is "{known}" in lab2cname and "{text}" in classnames')
        if not str(text).strip():
            raise UserError(f"{name}: class {label} has no name, so that its prompt says nothing")
    if len(names) == 1:
        logger.warning('%s has the class "%s" alone: every image gets it, and an accuracy says nothing', name, names[0])
    first: dict[str, str] = {}
    for text in () if hasattr(dataset, "spec") else names:  # a loader of this project has refused them
        if prompt_key(text) in first:
            logger.warning('%s: two classes have one prompt: "%s" and "%s"', name, first[prompt_key(text)], text)
        first.setdefault(prompt_key(text), text)
    for part, label, called in sorted(every, key=lambda entry: entry[1]):
        if called and called != names[label]:
            refuse(part, label, called, f'is {label}, "{names[label]}", but its classname is "{called}"')


def display_name(classname: str) -> str:
    """A class name as it stands in a text: blanks for underscores, and no letters that nobody sees.

    Raises:
        UserError: The name is empty.
    """
    name = classname.translate(INVISIBLE).replace("_", " ").strip()
    if not name:
        raise UserError(f"a class name must not be empty, got {classname!r}")
    return name


def check_training_labels(dataset: Any, name: str, method: str) -> None:
    """Refuse to learn from labels that are not there, or from those of tested images.

    Raises:
        UserError: there are no labels, or training images are tested.
    """
    if getattr(dataset, "unlabelled", False):
        raise UserError(
            f"{method} trains on labels, but the {len(dataset.train_x)} images of {name} have none; give labels, or "
            "take a method that needs none"
        )
    if getattr(dataset, "train_overlaps_test", False):
        raise UserError(
            f"{method} trains on labels, but here the training images are test images too ({dataset.protocol}); take "
            "DATASET.PROTOCOL dassl and source images of their own"
        )
