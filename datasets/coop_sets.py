"""The ten data sets of CoOp: Zhou, Yang, Loy, Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022.

Class lists, published numbers and links stand in `lists/`; the splits are read as `splits` says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError

from .base import register
from .folders import read_text
from .spec import PARTS, listed, name_key
from .splits import Entries, Split, SplitFileDataset, contents_hint

AIRCRAFT_LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}


@register
class Caltech101(SplitFileDataset):
    """100 kinds of things, 8,242 images: Fei-Fei, Fergus, Perona, CVPR Workshops 2004.

    `BACKGROUND_Google` and `Faces_easy` are left out; labels follow the case-sensitive order of the folders, so that
    face is 0 and airplane 4.
    """

    file = "caltech101"


@register
class OxfordPets(SplitFileDataset):
    """37 breeds of cats and dogs, 7,349 images: Parkhi, Vedaldi, Zisserman, Jawahar, CVPR 2012.

    A few files called .jpg are GIFs; PIL reads them.
    """

    file = "oxford_pets"


@register
class StanfordCars(SplitFileDataset):
    """196 models of cars, 16,185 images: Krause, Stark, Deng, Fei-Fei, ICCV Workshops 2013.

    Paths begin at the data set's folder (`cars_train/00001.jpg`); names begin with the year ("2012 Audi TTS Coupe").
    """

    file = "stanford_cars"


@register
class OxfordFlowers(SplitFileDataset):
    """102 kinds of flowers, 8,189 images: Nilsback, Zisserman, ICVGIP 2008.

    The split is CoOp's own, not that of `setid.mat`.
    """

    file = "oxford_flowers"


@register
class Food101(SplitFileDataset):
    """101 dishes, 101,000 images: Bossard, Guillaumin, Van Gool, ECCV 2014.

    The split is CoOp's own; cheese_plate is 16 and cheesecake 17, which other lists have the other way round.
    """

    file = "food101"


@register
class SUN397(SplitFileDataset):
    """397 indoor and outdoor scenes, 39,700 listed images: Xiao, Hays, Ehinger, Oliva, Torralba, CVPR 2010.

    Names are the folders from the inside out: `a/apartment_building/outdoor` is "outdoor apartment_building".
    """

    file = "sun397"


@register
class DescribableTextures(SplitFileDataset):
    """DTD, 47 textures, 5,640 images: Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi, CVPR 2014.

    The split is CoOp's own, not one of the ten official ones.
    """

    file = "dtd"


@register
class EuroSAT(SplitFileDataset):
    """10 kinds of land, 27,000 satellite images of 64x64 pixels: Helber, Bischke, Dengel, Borth, arXiv 1709.00029.

    Names are CoOp's ("Annual Crop Land" for `AnnualCrop`).
    """

    file = "eurosat"


@register
class UCF101(SplitFileDataset):
    """101 actions of people, the middle frames of 13,320 videos: Soomro, Zamir, Shah, arXiv 1212.0402.

    Labels are those of classInd.txt, which differ from sorted folders in two pairs; the folder of a class and the name
    in its files may differ in letter case.
    """

    file = "ucf101"


@register
class FGVCAircraft(SplitFileDataset):
    """100 variants of aircraft, 10,000 images: Maji, Kannala, Rahtu, Blaschko, Vedaldi, arXiv 1306.5151.

    The split is that of `images_variant_{train,val,test}.txt`, whose lines are the number of an image and its variant.
    """

    file = "fgvc_aircraft"

    def read_split(self, cfg, root: Path, folders: Sequence[Path], entry: Mapping) -> Split:
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
        return Split(f"split lists {listed(lists)} in {home}", entries)
