"""The published data sets with domains: PACS, VLCS, OfficeHome, DomainNet and miniDomainNet.

Class lists, spellings of domains, published numbers and links stand in `lists/`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dassl_clip.results.data_sets import read_entry
from dassl_clip.results.errors import MissingFileError, UserError

from . import packed
from .base import Layout, ListedDataset, register
from .folders import ImageFile, list_folder, read_text
from .hub import TableParts
from .layouts import candidates, has_part_folders, holdout_layout, part_folders_layout, pick_domains
from .options import DASSL, DOMAINBED, HOLDOUT, choice, split_seed
from .spec import Spec, listed, load_spec
from .splits import lists_or_holdout, split_line

logger = logging.getLogger(__name__)

PACS_LISTS = (
    {"train": "train_kfold", "val": "crossval_kfold"},
    {"train": "train", "val": "crossval"},
    {"train": "train", "val": "val"},
)
VLCS_NOTE = " (Dassl's release; its test/ is 30 % of a domain, DATASET.VLCS_TEST full+test tests all of a held-out one)"
VLCS_TESTS = {"test": ("test",), "full+test": ("train", "val", "test")}
DOMAINNET_LISTS = ({"train": "train", "val": "test"},)
DOMAINNET_HINT = " The archives of clipart and painting must be those published under `groundtruth/`"
MINI_FOLDER = "splits_mini"


@register
class PACS(ListedDataset):
    """4 domains, 7 classes, 9,991 images of 227x227 pixels: Li, Yang, Song, Hospedales, ICCV 2017, arXiv 1710.03077.

    With the published lists `{domain}_{train,crossval}_kfold.txt`: train and crossval of the sources, both of a
    held-out target. Without lists: the seeded hold-out. One damaged image, `sketch/dog/n02103406_4068-1.png`, is always
    left out.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("pacs")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "crossval list"}
        return lists_or_holdout(cfg, self.spec, domains, PACS_LISTS, parts, heldout=("train", "val"))

    def table_parts(self, cfg) -> TableParts:
        return TableParts(whole=True)


@register
class VLCS(ListedDataset):
    """4 domains, 5 classes, 10,729 images, in two releases of the same images: Fang, Xu, Rockmore, ICCV 2013.

    Dassl's release has the folders `{CALTECH,LABELME,PASCAL,SUN}/{train,crossval,test}/{0..4}`, the class folders being
    numbers; a held-out target is tested on `test/` (30 % of its images), or on all with DATASET.VLCS_TEST full+test
    (its folder `full` is train and crossval together, so that "full+test" is every image once). The other release has
    `{Caltech101,LabelMe,SUN09,VOC2007}/{bird,...}` and no splits.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("vlcs")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        option = choice("VLCS_TEST", cfg.DATASET.get("VLCS_TEST", "test"), list(VLCS_TESTS))
        tests_all, tested = option != "test", VLCS_TESTS[option]
        if tests_all and self.protocol_name in (HOLDOUT, DOMAINBED):
            raise UserError(
                "DATASET.VLCS_TEST full+test chooses among the parts of Dassl's release, which DATASET.PROTOCOL "
                f"{self.protocol_name} draws anew: leave it at test, or use DATASET.PROTOCOL dassl"
            )
        releases = []
        for with_parts in (True, False):
            for folder, matches in candidates(cfg, self.spec):
                paths = {domain: [path for path in found if has_part_folders(path) == with_parts]
                         for domain, found in matches.items()}  # fmt: skip
                releases.append((with_parts, folder, {domain: found for domain, found in paths.items() if found}))
        with_parts, folder, matches = max(releases, key=lambda release: sum(domain in release[2] for domain in domains))
        folders = pick_domains(folder, matches, domains, self.spec)
        if not with_parts:
            return holdout_layout(folder, folders, self.spec, split_seed(cfg))
        both = [domain for domain in self.source_domains if domain in self.target_domains]
        if both and tests_all and self.protocol_name == DASSL:
            raise UserError(
                f"DATASET.VLCS_TEST full+test would test the images of {', '.join(both)} that are trained on: "
                "leave it at test where a domain is both source and target, or use DATASET.PROTOCOL all-images"
            )
        if self.protocol_name == DOMAINBED:
            logger.warning(
                "VLCS: the files of %s, Dassl's release, have other names than DomainBed's: its split has other images",
                folder,
            )
        parts, note = {"train": "train", "val": "crossval", "test": "test"}, VLCS_NOTE
        without = [path for path in folders.values()
                   if not any(name.lower() == "crossval" for name in list_folder(path)[0])]  # fmt: skip
        if without:
            if len(without) < len(folders):
                raise MissingFileError(
                    f"VLCS: no crossval/ in {listed(without)}, while other domains have it: add it, or move it away "
                    "everywhere"
                )
            if tests_all:
                raise MissingFileError(
                    f"VLCS: DATASET.VLCS_TEST full+test tests every image of a domain, but {folder} has no crossval/"
                )
            logger.warning("VLCS: no crossval/ in %s: a source has no validation images of its own", folder)
            del parts["val"]
            note = f"{VLCS_NOTE}, no crossval"
        return part_folders_layout(folder, folders, self.spec, parts, tested, note=note)

    def table_parts(self, cfg) -> TableParts:
        return TableParts(
            heldout=VLCS_TESTS[choice("VLCS_TEST", cfg.DATASET.get("VLCS_TEST", "test"), list(VLCS_TESTS))]
        )


class _OfficeHome(ListedDataset):
    """4 domains, 65 classes, 15,588 images of things of the office and the home.

    Venkateswara, Eusebio, Chakraborty, Panchanathan, CVPR 2017 (arXiv 1706.07522). Labels are the positions in the
    case-sensitive order of the class folders, as in Dassl: TV is 58, before Table. Other published lists have it at 63;
    their numbers are not read.

    Attributes:
        file: stem of the entry in `lists/`.
        has_parts: whether the folder of a domain holds a folder for each part of a split.
        other_layout: what is said of a folder in the other layout.
    """

    file = ""
    has_parts = False
    other_layout = ""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec(cls.file)

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        found = candidates(cfg, self.spec)
        fitting = [
            entry
            for entry in found
            if self.has_parts in {has_part_folders(path) for paths in entry[1].values() for path in paths}
        ]
        folder, matches = (fitting or found)[0]
        folders = pick_domains(folder, matches, domains, self.spec)
        for path in folders.values():
            if has_part_folders(path) != self.has_parts:
                raise UserError(self.other_layout.format(path))
        if not self.has_parts:
            return holdout_layout(folder, folders, self.spec, split_seed(cfg))
        parts = {"train": "train", "val": "val"}
        return part_folders_layout(folder, folders, self.spec, parts, heldout=("train", "val"), label_prefix=True)

    def table_parts(self, cfg) -> TableParts:
        return (
            TableParts(heldout=("train", "val"), needed=("train", "val")) if self.has_parts else TableParts(whole=True)
        )


@register
class OfficeHome(_OfficeHome):
    """OfficeHome as published: domain/class/image, without splits."""

    file = "office_home"
    other_layout = (
        "OfficeHome: {} holds train/ and val/ - this is Dassl's layout for domain generalization; "
        "use DATASET.NAME OfficeHomeDG"
    )


@register
class OfficeHomeDG(_OfficeHome):
    """The same images with Dassl's split: domain/{train,val}/class/image.

    Its older release puts the label before the class (`000_Alarm_Clock`).
    """

    file = "office_home_dg"
    has_parts = True
    other_layout = "OfficeHomeDG: no train/ in {} - this is the plain OfficeHome layout; use DATASET.NAME OfficeHome"


@register
class DomainNet(ListedDataset):
    """6 domains, 345 classes, 586,575 images in the cleaned release.

    Peng, Bai, Xia, Huang, Saenko, Wang, ICCV 2019 (arXiv 1812.01754). The label order is that of the published lists:
    class names in alphabetical order when everything but letters and their case is ignored, so neither that of `sorted`
    nor that of the folders. With the lists `{domain}_{train,test}.txt`: train and test of the sources train and
    validate, test of the target is tested, and only listed files are used. Without them every file of the folders
    counts, duplicates of the original release included, with the seeded hold-out.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("domainnet")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "test list"}
        return lists_or_holdout(
            *(cfg, self.spec, domains, DOMAINNET_LISTS, parts), heldout=("val",), hint=DOMAINNET_HINT, selective=True
        )

    def table_parts(self, cfg) -> TableParts:
        return TableParts({"train": "train", "test": "val"}, heldout=("val",))

    def check_counts(self, pools: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Name the release that each domain's number of images belongs to; warn where it is none."""
        counts = {domain: sum(map(len, parts.values())) for domain, parts in pools.items()}
        releases = {}
        for domain, count in counts.items():
            cleaned, entry = self.spec.images[domain], self.spec.details[domain]
            original = (entry["original"], cleaned + entry["duplicates"])  # with duplicates
            releases[domain] = "cleaned" if count == cleaned else "original" if count in original else "unknown"
        unknown = {domain: count for domain, count in counts.items() if releases[domain] == "unknown"}
        self.warn_of_counts(unknown, {domain: self.spec.published(domain) for domain in unknown})
        return f" (release by number of images: {', '.join(f'{name} {release}' for name, release in releases.items())})"


@register
class miniDomainNet(ListedDataset):
    """4 domains and 126 classes of DomainNet: Zhou, Yang, Qiao, Xiang, IEEE TIP 2021, arXiv 2003.07325.

    The images are those of DomainNet; which of them count, and the label of each class, stands in
    `splits_mini/{domain}_{train,test}.txt` alone. All lists that are there make the class list, whichever domains a run
    uses. Without them the set cannot be made.
    """

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        spec, entry = load_spec("mini_domainnet"), read_entry("mini_domainnet")
        found = [folder for folder, _ in candidates(cfg, spec)]
        homes = [home / MINI_FOLDER for folder in found for home in (folder, folder.parent)]
        home = next((folder for folder in homes if folder.is_dir()), None)
        if home is None:
            raise MissingFileError(
                f"miniDomainNet: no {MINI_FOLDER}/ in {listed(found)}. Which images belong to it stands in its lists "
                f"alone, which are published at {entry['links'][0]['url']}.{packed.hint(found[0], (MINI_FOLDER,))}"
            )
        paths = sorted(path for path in home.iterdir() if re.fullmatch(r".+_(train|test)\.txt", path.name))
        classes = listed_classes(paths, home)
        if len(classes) != entry["num_classes"]:
            raise UserError(
                f"miniDomainNet: the lists in {home} name {len(classes)} classes, expected {entry['num_classes']}: "
                "they are those of another data set"
            )
        return replace(spec, classes=tuple(classes))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "test list"}
        return lists_or_holdout(
            *(cfg, self.spec, domains, DOMAINNET_LISTS, parts),
            heldout=("val",),
            hint=DOMAINNET_HINT,
            list_folders=(MINI_FOLDER,),
            selective=True,
        )


def listed_classes(paths: Sequence[Path], folder: Path) -> list[str]:
    """Class names by label, from the lines of all lists, which must not contradict each other or leave a label out."""
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
    gaps = sorted(set(range(max(names, default=-1) + 1)) - set(names))
    if gaps:
        raise UserError(f"miniDomainNet: the lists in {folder} have no image with the labels {listed(gaps)}")
    return [names[label] for label in range(len(names))]
