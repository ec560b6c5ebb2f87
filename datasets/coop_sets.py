"""The ten data sets of CoOp: Zhou, Yang, Loy, Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022.

Class lists, published numbers and links stand in `lists/`; the splits are read as `splits` says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.data_sets import name_key
from dassl_clip.results.errors import MissingFileError, UserError

from .base import register
from .folders import read_text
from .spec import PARTS, listed
from .splits import Entries, SplitFileDataset, contents_hint

AIRCRAFT_LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}


@register
class Caltech101(SplitFileDataset):
    """100 kinds of things, 8,242 images, face 0 and airplane 4: Fei-Fei, Fergus, Perona, CVPR Workshops 2004."""

    file = "caltech101"


@register
class OxfordPets(SplitFileDataset):
    """37 breeds of cats and dogs, 7,349 images: Parkhi, Vedaldi, Zisserman, Jawahar, CVPR 2012."""

    file = "oxford_pets"


@register
class StanfordCars(SplitFileDataset):
    """196 models of cars, 16,185 images: Krause, Stark, Deng, Fei-Fei, ICCV Workshops 2013."""

    file = "stanford_cars"


@register
class OxfordFlowers(SplitFileDataset):
    """102 kinds of flowers, 8,189 images, with CoOp's own split: Nilsback, Zisserman, ICVGIP 2008."""

    file = "oxford_flowers"


@register
class Food101(SplitFileDataset):
    """101 dishes, 101,000 images, with CoOp's own split: Bossard, Guillaumin, Van Gool, ECCV 2014."""

    file = "food101"


@register
class SUN397(SplitFileDataset):
    """397 scenes, 39,700 listed images, named from the inside out: Xiao, Hays, Ehinger, Oliva, Torralba, CVPR 2010."""

    file = "sun397"


@register
class DescribableTextures(SplitFileDataset):
    """DTD, 47 textures, 5,640 images, with CoOp's own split: Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi, CVPR 2014."""

    file = "dtd"


@register
class EuroSAT(SplitFileDataset):
    """10 kinds of land, 27,000 satellite images: Helber, Bischke, Dengel, Borth, arXiv 1709.00029."""

    file = "eurosat"


@register
class UCF101(SplitFileDataset):
    """101 actions of people, the middle frames of 13,320 videos: Soomro, Zamir, Shah, arXiv 1212.0402."""

    file = "ucf101"


@register
class FGVCAircraft(SplitFileDataset):
    """100 variants of aircraft, 10,000 images: Maji, Kannala, Rahtu, Blaschko, Vedaldi, arXiv 1306.5151.

    The split is that of `images_variant_{train,val,test}.txt`, whose lines are the number of an image and its variant.
    """

    file = "fgvc_aircraft"

    def read_split(self, cfg, root: Path, folders: Sequence[Path], entry: Mapping) -> tuple[str, Entries]:
        if cfg.DATASET.get("SPLIT_FILE", ""):
            entry = {**entry, "split_file": "", "first_train_entry": ["", 0, ""]}
            return super().read_split(cfg, root, folders, entry)
        lists = AIRCRAFT_LISTS.values()
        home = next((folder for folder in folders if any((folder / name).is_file() for name in lists)), None)
        missing = [name for name in lists if home is None or not (home / name).is_file()]
        if missing:
            raise MissingFileError(
                f"FGVCAircraft: {listed(missing)} not found in {home or listed(folders, 4)}.{contents_hint(folders)} "
                "They lie beside images/ in fgvc-aircraft-2013b/data. Nothing is downloaded; see docs/datasets.md"
            )
        labels = {name_key(name): label for label, name in enumerate(self.spec.classes)}
        entries: Entries = {}
        for part, name in AIRCRAFT_LISTS.items():
            entries[part] = []
            for number, line in enumerate(read_text(home / name).splitlines(), start=1):
                image, _, variant = line.strip().replace("\t", " ").partition(" ")
                if not image:
                    continue
                if name_key(variant) not in labels:
                    raise UserError(f'{home / name}, line {number}: "{variant}" is no variant of FGVCAircraft')
                entries[part].append((f"{image}.jpg", labels[name_key(variant)]))
        return f"split lists {listed(lists)} in {home}", entries
