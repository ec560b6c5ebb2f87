"""miniDomainNet: 4 domains and 126 classes of DomainNet, by the lists in `splits_mini/`.

Zhou, Yang, Qiao, Xiang, "Domain Adaptive Ensemble Learning", IEEE TIP 2021 (arXiv 2003.07325). The images are those of
DomainNet; which of them count, and the label of each class, stands in `splits_mini/{domain}_{train,test}.txt` alone.
All lists that are there make the class list, whichever domains a run uses. Without them the set cannot be made.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import DomainDataset, Layout, register
from .domainnet import HINT
from .folders import read_text
from .layouts import candidates
from .spec import Spec, listed, load_spec, read_entry
from .split_lists import lists_or_holdout, split_line

ENTRY = "mini_domainnet"
LISTS_FOLDER = "splits_mini"
FAMILIES = ({"train": "train", "val": "test"},)
LIST_NAME = re.compile(r".+_(train|test)\.txt")


@register
class miniDomainNet(DomainDataset):
    """Clipart, painting, real and sketch."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        spec = load_spec(ENTRY)
        folder = lists_folder(cfg, spec)
        classes = listed_classes(sorted(path for path in folder.iterdir() if LIST_NAME.fullmatch(path.name)), folder)
        if len(classes) != read_entry(ENTRY)["num_classes"]:
            raise UserError(
                f"miniDomainNet: the lists in {folder} name {len(classes)} classes, expected "
                f"{read_entry(ENTRY)['num_classes']}: they are those of another data set"
            )
        return replace(spec, classes=tuple(classes))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "test list"}
        return lists_or_holdout(
            *(cfg, self.spec, domains, FAMILIES, parts),
            heldout=("val",),
            hint=HINT,
            list_folders=(LISTS_FOLDER,),
            selective=True,
        )


def lists_folder(cfg, spec: Spec) -> Path:
    """The folder of the lists.

    Raises:
        MissingFileError: if there is none.
    """
    found = [folder for folder, _ in candidates(cfg, spec)]
    homes = [home for folder in found for home in (folder, folder.parent)]
    for home in homes:
        if (home / LISTS_FOLDER).is_dir():
            return home / LISTS_FOLDER
    link = read_entry(ENTRY)["links"][0]["url"]
    raise MissingFileError(
        f"miniDomainNet: no {LISTS_FOLDER}/ in {listed(found)}. Which images belong to it stands in its lists alone, "
        f"which are published at {link}"
    )


def listed_classes(paths: Sequence[Path], folder: Path) -> list[str]:
    """Class names by label, from the lines of all lists.

    Raises:
        MissingFileError: if there are no lists.
        UserError: if lines contradict each other or labels have gaps.
    """
    if not paths:
        raise MissingFileError(
            f"miniDomainNet: {folder} holds no list called {{domain}}_train.txt or {{domain}}_test.txt"
        )
    names: dict[int, str] = {}
    for path in paths:
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            file, label = split_line(line, path, number)
            steps = file.split("/")
            if label < 0 or len(steps) < 2:
                raise UserError(f'{path}, line {number}: expected "domain/class/file label", found "{line.strip()}"')
            known = names.setdefault(label, steps[-2])
            if known != steps[-2]:
                raise UserError(f'{path}, line {number}: label {label} is "{steps[-2]}" here and "{known}" elsewhere')
    if sorted(names) != list(range(len(names))):
        gaps = sorted(set(range(max(names) + 1)) - set(names))
        raise UserError(f"miniDomainNet: the lists in {folder} have no image with the labels {listed(gaps)}")
    return [names[label] for label in range(len(names))]
