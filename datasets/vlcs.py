"""VLCS: 4 domains, 5 classes, 10,729 images, in two releases of the same images.

Fang, Xu, Rockmore, "Unbiased Metric Learning", ICCV 2013. Dassl's release has the folders
`{CALTECH,LABELME,PASCAL,SUN}/{train,crossval,test}/{0..4}`, the class folders being numbers; a held-out target is
tested on `test/` (30 % of its images), or on all with DATASET.VLCS_TEST full+test (its folder `full` is train and
crossval together, so that "full+test" is every image once). The other release has
`{Caltech101,LabelMe,SUN09,VOC2007}/{bird,...}` and no splits.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import DomainDataset, Layout, register, split_seed
from .folders import list_folder
from .layouts import candidates, has_part_folders, holdout_layout, part_folders_layout, pick_domains
from .protocols import DASSL, HOLDOUT
from .spec import Spec, did_you_mean, listed, load_spec

logger = logging.getLogger(__name__)

NOTE = " (Dassl's release; its test/ is 30 % of a domain, DATASET.VLCS_TEST full+test tests all of a held-out one)"
TEST_PARTS = {"test": ("test",), "full+test": ("train", "val", "test")}


@register
class VLCS(DomainDataset):
    """Caltech101, LabelMe, PASCAL VOC2007 and SUN09."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("vlcs")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        tested = test_parts(cfg.DATASET.get("VLCS_TEST", "test"))
        if tested != TEST_PARTS["test"] and self.protocol_name == HOLDOUT:
            raise UserError(
                "DATASET.VLCS_TEST full+test chooses among the parts of Dassl's release, which DATASET.PROTOCOL "
                "holdout draws anew: leave it at test, or use DATASET.PROTOCOL dassl"
            )
        found = [
            (release, folder, {domain: kept for domain, paths in matches.items() if (kept := keep(paths))})
            for release, keep in (("parts", with_parts), ("classes", without_parts))
            for folder, matches in candidates(cfg, self.spec)
        ]
        release, folder, matches = max(found, key=lambda entry: sum(domain in entry[2] for domain in domains))
        folders = pick_domains(folder, matches, domains, self.spec)
        if release == "classes":
            return holdout_layout(folder, folders, self.spec, split_seed(cfg))
        both = [domain for domain in self.source_domains if domain in self.target_domains]
        if both and tested != TEST_PARTS["test"] and self.protocol_name == DASSL:
            raise UserError(
                f"DATASET.VLCS_TEST full+test would test the images of {', '.join(both)} that are trained on: "
                "leave it at test where a domain is both source and target, or use DATASET.PROTOCOL all-images"
            )
        parts = {"train": "train", "val": "crossval", "test": "test"}
        without = [domain for domain, path in folders.items() if not holds(path, "crossval")]
        if without and len(without) < len(folders):
            raise MissingFileError(
                f"VLCS: no crossval/ in {listed(folders[domain] for domain in without)}, while other domains have it: "
                "add it, or move it away everywhere"
            )
        if not without:
            return part_folders_layout(folder, folders, self.spec, parts, tested, note=NOTE)
        if tested != TEST_PARTS["test"]:
            raise MissingFileError(
                f"VLCS: DATASET.VLCS_TEST full+test tests every image of a domain, but {folder} has no crossval/"
            )
        logger.warning("VLCS: no crossval/ in %s: a source has no validation images of its own", folder)
        del parts["val"]
        return part_folders_layout(folder, folders, self.spec, parts, tested, note=f"{NOTE}, no crossval")


def holds(domain: Path, part: str) -> bool:
    """Whether a domain has the folder of a part."""
    return any(name.lower() == part for name in list_folder(domain)[0])


def test_parts(option: str) -> tuple[str, ...]:
    """Parts of a held-out domain that DATASET.VLCS_TEST asks for.

    Raises:
        UserError: for another word.
    """
    if option not in TEST_PARTS:
        hint = did_you_mean(option, list(TEST_PARTS))
        raise UserError(f'DATASET.VLCS_TEST is "{option}"; it must be one of {", ".join(TEST_PARTS)}.{hint}')
    return TEST_PARTS[option]


def with_parts(paths: Sequence[Path]) -> list[Path]:
    """The folders among some domain folders that hold a folder for each part."""
    return [path for path in paths if has_part_folders(path)]


def without_parts(paths: Sequence[Path]) -> list[Path]:
    """The other ones."""
    return [path for path in paths if not has_part_folders(path)]
