"""Icons: 4 domains (emoji, flat, line, solid), 45 classes, 2,872 drawings of 64x64 pixels; ships with the package.

The pictures come from 20 icon packs of the Iconify collection; `docs/icons.md` names them with their licences. Each
domain has the parts train, val and test, stored in `split.csv`; variants of one drawing lie in one part. A held-out
target is tested as a whole. DATASET.ROOT is not needed; if it (or `icons/` in it) holds a `split.csv` of this data set,
that copy is read.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, ListedDataset, Parts, register
from .folders import ImageFile, readable_csv
from .options import ALL_IMAGES, DASSL, DOMAINBED
from .spec import PARTS, Spec, listed

SPLIT_FILE = "split.csv"
MANIFEST_FILE = "manifest.json"
INSTALL = "install dassl-clip again, or run `python -m tools.build_icons --data-only`"


@register
class Icons(ListedDataset):
    """The same things drawn as emoji, flat, line and solid icons."""

    own_styles_file = (
        ICONS_FOLDER.parent / "own_styles.json"
    )  # for templates with {own}: the seed 1 of tools.build_icons
    protocols = (DASSL, ALL_IMAGES, DOMAINBED)  # a new hold-out would part variants of a drawing; DomainBed knows none

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        facts = json.loads((icons_folder(cfg.DATASET.ROOT) / MANIFEST_FILE).read_text(encoding="utf-8"))
        return Spec(name="Icons", classes=tuple(facts["classes"]), domains=dict.fromkeys(facts["domains"], ()))

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        folder = icons_folder(cfg.DATASET.ROOT)
        images = read_split(folder, self.spec)
        where = "shipped with the package" if folder == ICONS_FOLDER else f"in {folder}"
        text = f"pictures {where}, parts of {SPLIT_FILE}"
        return Layout(text, images.__getitem__, {part: part for part in PARTS}, heldout=PARTS)


def icons_folder(root: str) -> Path:
    """The data set's folder: a copy in DATASET.ROOT where there is one, else the one that ships with the package."""
    top = Path(root).expanduser().absolute()
    for folder in (top, top / "icons") if root else ():
        if (folder / SPLIT_FILE).is_file() and (folder / MANIFEST_FILE).is_file():
            return folder
    if not (ICONS_FOLDER / MANIFEST_FILE).is_file():
        raise MissingFileError(
            f"Icons: {ICONS_FOLDER / MANIFEST_FILE} is missing, so the installed package has no pictures; {INSTALL}"
        )
    return ICONS_FOLDER


def read_split(folder: Path, spec: Spec) -> dict[str, Parts]:
    """Images by domain and part, in the order of the split file, all of which must be there."""
    labels = {name: label for label, name in enumerate(spec.classes)}
    images: dict[str, Parts] = {domain: {part: [] for part in PARTS} for domain in spec.domains}
    missing = []
    with readable_csv(folder / SPLIT_FILE), (folder / SPLIT_FILE).open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            domain, label, part = row["domain"], labels.get(row["class"]), row["split"]
            if label is None or part not in images.get(domain, ()):
                raise UserError(
                    f"{folder / SPLIT_FILE}, line {number}: domain {domain!r}, class {row['class']!r}, part {part!r}; "
                    f"expected are domains {listed(spec.domains)}, the manifest's classes and parts {listed(PARTS)}"
                )
            path = folder / row["path"]
            if not path.is_file():
                missing.append(row["path"])
            images[domain][part].append(ImageFile(str(path), label, row["path"]))
    if missing:
        raise MissingFileError(
            f"Icons: {len(missing)} pictures of {folder / SPLIT_FILE} are missing: {listed(missing)}; {INSTALL}"
        )
    return images
