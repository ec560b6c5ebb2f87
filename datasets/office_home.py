"""OfficeHome and OfficeHomeDG: 4 domains, 65 classes, 15,588 images.

Venkateswara, Eusebio, Chakraborty, Panchanathan, "Deep Hashing Network for Unsupervised Domain Adaptation", CVPR 2017
(arXiv 1706.07522). `OfficeHome` reads the published tree domain/class/image, which has no splits. `OfficeHomeDG`
reads Dassl's tree domain/{train,val}/class/image, whose older release puts the label before the class
(`000_Alarm_Clock`). Labels of both are the positions in the case-sensitive order of the class folders, as in Dassl:
TV is 58, before Table. Other published lists have it at 63; their numbers are not read.
"""

from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results.errors import UserError

from .base import DomainDataset, Layout, register, split_seed
from .layouts import candidates, has_part_folders, holdout_layout, part_folders_layout, pick_domains
from .spec import Spec, load_spec


def find_domains(cfg, spec: Spec, domains: Sequence[str], parts: bool) -> tuple[Path, dict[str, Path]]:
    """The folder of the domains, and each domain's own: with folders for the parts of a split, or without.

    Raises:
        UserError: if only the other layout is there.
    """
    found = candidates(cfg, spec)
    fitting = [
        entry for entry in found if parts in {has_part_folders(path) for paths in entry[1].values() for path in paths}
    ]
    folder, matches = (fitting or found)[0]
    folders = pick_domains(folder, matches, domains, spec)
    for path in folders.values():
        if has_part_folders(path) == parts:
            continue
        if parts:
            raise UserError(
                f"OfficeHomeDG: no train/ in {path} - this is the plain OfficeHome layout; use DATASET.NAME OfficeHome"
            )
        raise UserError(
            f"OfficeHome: {path} holds train/ and val/ - this is Dassl's layout for domain generalization; "
            "use DATASET.NAME OfficeHomeDG"
        )
    return folder, folders


@register
class OfficeHome(DomainDataset):
    """Art, clipart, product and real-world images of things of the office and the home."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("office_home")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        folder, folders = find_domains(cfg, self.spec, domains, parts=False)
        return holdout_layout(folder, folders, self.spec, split_seed(cfg))


@register
class OfficeHomeDG(DomainDataset):
    """The same images with Dassl's split into train and val."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("office_home_dg")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        folder, folders = find_domains(cfg, self.spec, domains, parts=True)
        parts = {"train": "train", "val": "val"}
        return part_folders_layout(folder, folders, self.spec, parts, heldout=("train", "val"), label_prefix=True)
