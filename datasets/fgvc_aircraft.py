"""FGVC Aircraft: 100 variants of aircraft, 10,000 images.

Maji, Kannala, Rahtu, Blaschko, Vedaldi, "Fine-Grained Visual Classification of Aircraft", 2013 (arXiv 1306.5151). The
split is that of `images_variant_{train,val,test}.txt`, whose lines are the number of an image and its variant.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .folders import read_text
from .protocols import PARTS
from .registration import register
from .spec import listed, name_key
from .split_file import Entries, Split, SplitFileDataset, contents_hint

LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}


@register
class FGVCAircraft(SplitFileDataset):
    """Variants of aircraft."""

    file = "fgvc_aircraft"

    def read_split(self, cfg, root: Path, found: Sequence[Path], entry: Mapping) -> Split:
        """The entries of the three lists.

        Raises:
            MissingFileError: if a list is missing.
            UserError: if a line names no variant.
        """
        if cfg.DATASET.get("SPLIT_FILE", ""):
            return super().read_split(cfg, root, found, {**entry, "split_file": "", "first_train_entry": ["", 0, ""]})
        folder = next((place for place in found if any((place / name).is_file() for name in LISTS.values())), None)
        missing = [name for name in LISTS.values() if folder is None or not (folder / name).is_file()]
        if missing:
            raise MissingFileError(
                f"FGVCAircraft: {listed(missing)} not found in {folder or listed(found, 4)}.{contents_hint(found)} "
                "They lie beside images/ in fgvc-aircraft-2013b/data. Nothing is downloaded; see docs/datasets.md"
            )
        labels = {name_key(name): label for label, name in enumerate(self.spec.classes)}
        entries: Entries = {}
        for part, name in LISTS.items():
            entries[part] = []
            for number, line in enumerate(read_text(folder / name).splitlines(), start=1):
                image, _, variant = line.strip().replace("\t", " ").partition(" ")
                if not image:
                    continue
                if name_key(variant) not in labels:
                    raise UserError(f'{folder / name}, line {number}: "{variant}" is no variant of FGVCAircraft')
                entries[part].append((f"{image}.jpg", labels[name_key(variant)]))
        return Split(f"split lists {listed(LISTS.values())} in {folder}", entries)
