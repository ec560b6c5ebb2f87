"""TerraIncognita: 4 camera traps, 10 classes, in DomainBed's folders or read from the original release.

Beery, Van Horn, Perona, ECCV 2018 (arXiv 1807.04975); the choice of classes and locations is that of DomainBed
(Gulrajani and Lopez-Paz, ICLR 2021), whose program copies an image into the folder of each kept class that one of its
annotations names. So an image with two of the ten classes counts twice, with labels that contradict each other.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dassl_clip.results.data_sets import name_key, read_entry
from dassl_clip.results.errors import MissingFileError, UserError

from .base import Layout, ListedDataset, register, split_again
from .folders import ImageFile, list_folder, open_root, read_classes, read_text
from .layouts import candidates, named_folders, pick_domains
from .options import ALL_IMAGES, choice, split_seed
from .spec import Spec, listed, load_spec

logger = logging.getLogger(__name__)

FILE = "terra_incognita"
BOTH, SINGLE = "domainbed", "single"  # values of DATASET.TERRAINCOGNITA
TABLES = ("images", "annotations", "categories")
Images = dict[str, list[ImageFile]]  # location -> its images, in label order and sorted by name inside a class


class Release(NamedTuple):
    """The original release: the folder of its images, and the annotation files of one of DomainBed's constructions."""

    folder: Path
    annotations: list[Path]
    images: int | None  # that this construction is known to give


@register
class TerraIncognita(ListedDataset):
    """Photographs of camera traps, by location.

    DATASET.TERRAINCOGNITA says what is done with an image of two classes: `domainbed` counts it in both, `single`
    leaves it out. A class that a location lacks keeps its label.
    """

    two_classes = True

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec(FILE)

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        option = choice("TERRAINCOGNITA", cfg.DATASET.get("TERRAINCOGNITA", BOTH), [BOTH, SINGLE])
        root = open_root(cfg.DATASET.ROOT, self.spec.name)
        release = find_release(root, self.spec)
        if release is not None:
            every, text = read_release(release, self.spec)
        else:
            folder, matches = candidates(cfg, self.spec)[0]
            pick_domains(folder, matches, domains, self.spec)
            folders = pick_domains(folder, matches, [name for name in self.spec.domains if name in matches], self.spec)
            every = {name: read_classes(path, name, self.spec, complete=False) for name, path in folders.items()}
            text = f"location/class folders in {folder}"
        single = {name: of_one_class(images) for name, images in every.items()}
        self._check(every, single, domains, option)
        self.count_text = self._count(every, single, release)
        if option == SINGLE:
            self.spec = replace(self.spec, images={})  # of which no number is published
        chosen = every if option == BOTH else single
        layout = Layout(
            f"{text}, images of two classes: {option}", lambda name: {"train": chosen[name]}, {"train": "all"}
        )
        return split_again(layout, split_seed(cfg), how=", no split lists")

    def check_counts(self, pools: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """The numbers of all locations, whichever are used: `_count` has compared them."""
        return self.count_text

    def _check(self, every: Images, single: Images, domains: Sequence[str], option: str) -> None:
        """Refuse a location without images, and to test under one class what is trained on under another; warn of
        classes that a location lacks."""
        for name in domains:
            present = {image.label for image in every.get(name, ())}
            if not present:
                raise MissingFileError(f"{self.spec.name}: there is no image of the ten classes at {name}")
            if absent := [cls for label, cls in enumerate(self.spec.classes) if label not in present]:
                logger.warning("%s: %s has no images of %s", self.spec.name, name, listed(absent))
        for name in (name for name in domains if name in self.source_domains and name in self.target_domains):
            if option == BOTH and self.protocol_name != ALL_IMAGES and len(single[name]) < len(every[name]):
                raise UserError(
                    f"{self.spec.name}: {name} is trained on and tested, and {len(every[name]) - len(single[name])} of "
                    "its entries are images of two classes, which could be trained on under one and tested under the "
                    f"other: use DATASET.TERRAINCOGNITA {SINGLE}"
                )

    def _count(self, every: Images, single: Images, release: Release | None) -> str:
        """Both numbers of images, by location; warn where they are those of no known construction."""
        known = {each["images"]: each["files"][0] for each in read_entry(FILE)["constructions"] if "images" in each}
        of_locations = next(iter(known))  # of the first alone the numbers of the locations are known
        expected = [*known] if release is None else [number for number in known if number == release.images]
        counts, total = {name: len(images) for name, images in every.items()}, sum(map(len, every.values()))
        complete = len(counts) == len(self.spec.domains)
        if complete and expected and total not in expected:
            numbers = " or ".join(f"{number:,} ({known[number]})" for number in expected)
            logger.warning("%s: %s images, where %s are known", self.spec.name, f"{total:,}", numbers)
        if of_locations not in expected or (complete and total in expected and total != of_locations):
            self.spec = replace(self.spec, images={})
        self.warn_of_counts(counts, {name: self.spec.published(name) for name in counts})
        texts = []
        for option, images in ((BOTH, every), (SINGLE, single)):
            each = ", ".join(f"{name} {len(images[name]):,}" for name in images)
            texts.append(f"{option} {sum(map(len, images.values())):,} ({each})")
        note = f", as {known[total]} gives" if complete and total in expected else ""
        return f" (numbers of images: {'; '.join(texts)}{note})"


def find_release(root: Path, spec: Spec) -> Release | None:
    """The original release in a folder; None if its images are not there, or its annotations are not but folders are.

    Raises:
        UserError: annotations of several constructions lie beside the images.
        MissingFileError: a construction of several files lacks some, or there are images alone.
    """
    entry = read_entry(FILE)
    home = next(
        (place for place in named_folders(root, spec.folders) if entry["image_folder"] in list_folder(place)[0]), None
    )
    if home is None:
        return None
    places = [home / name for name in entry["annotation_folders"] if (home / name).is_dir()]
    there = {name: place / name for place in reversed(places) for name in list_folder(place)[1]}
    found = [each for each in entry["constructions"] if any(name in there for name in each["files"])]
    if len(found) > 1:
        names = "; ".join(", ".join(name for name in each["files"] if name in there) for each in found)
        raise UserError(
            f"{spec.name}: {home} holds the annotations of {len(found)} constructions, which give different images "
            f"({names}): move all but one away"
        )
    keys = spec.domain_keys(letters=False)
    folders = [name for name in list_folder(home)[0] if name_key(name) in keys]
    if not found and folders:
        return None
    missing = [name for each in found for name in each["files"] if name not in there]
    if missing or not found:
        any_of = [each["files"][0] + (", ..." if each["files"][1:] else "") for each in entry["constructions"]]
        what = listed(missing) if missing else f"annotations ({' or '.join(any_of)})"
        raise MissingFileError(
            f"{spec.name}: {home} holds {entry['image_folder']}/, but no {what}: put {'them' if missing else 'those'} "
            f"beside that folder or into {entry['annotation_folders'][1]}/"
        )
    if folders:
        logger.info("%s: the original release is read, and not %s beside it", spec.name, listed(folders))
    return Release(home / entry["image_folder"], [there[name] for name in found[0]["files"]], found[0].get("images"))


def read_release(release: Release, spec: Spec) -> tuple[Images, str]:
    """The images of each location by the annotations, all of which must be there, and what was read in words."""
    kept, places = labels_by_image(release.annotations, spec), set()
    left_out: Counter[str] = Counter()
    for location, number, file in kept.images:
        labels = kept.labels.get(number)
        if labels:
            places |= {(location, label, file) for label in labels}
        else:
            left_out["are annotated with other classes alone" if labels is not None else "have no annotation"] += 1
    there = {*list_folder(release.folder)[1]}
    missing = sorted({file for _, _, file in places if file not in there})
    names = listed(path.name for path in release.annotations)
    if missing:
        raise MissingFileError(
            f"{spec.name}: {len(missing)} of {len({file for *_, file in places})} images that {names} name at the four "
            f"locations are not in {release.folder}, first: {missing[0]}"
        )
    for why, number in sorted(left_out.items()):
        logger.info("%s: %d images of the four locations %s and are not used, as in DomainBed", spec.name, number, why)
    every: Images = {name: [] for name in spec.domains}
    for location, label, file in sorted(places):
        key = f"{location}/{spec.classes[label]}/{file}"
        every[location].append(ImageFile(str(release.folder / file), label, key))
    return every, f"the images of {release.folder} by {names}"


class Annotated(NamedTuple):
    """What the annotations say of the four locations.

    `images` are location, number (`id`) and file of each image; `labels` the kept classes of each annotated one.
    """

    images: set[tuple[str, Any, str]]
    labels: dict[Any, set[int]]


def labels_by_image(paths: Sequence[Path], spec: Spec) -> Annotated:
    """Read annotation files in COCO's form, all together: an image of one file may be annotated in another."""
    tables: dict[str, list[dict]] = {name: [] for name in TABLES}
    for path in paths:
        try:
            data = json.loads(read_text(path))
            for name in TABLES:
                tables[name] += data[name]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path} is no annotation file with {listed(TABLES)}: {error!r}; get it again") from error
    classes = {name: label for label, name in enumerate(spec.classes)}
    try:
        names = {category["id"]: category["name"] for category in tables["categories"]}
        images = {
            (location, image["id"], str(image["file_name"]))
            for image in tables["images"]
            if (location := f"location_{image['location']}") in spec.domains
        }
        labels: dict[Any, set[int]] = {}
        here = {number for _, number, _ in images}
        for annotation in tables["annotations"]:
            if annotation["image_id"] in here:
                label = classes.get(names[annotation["category_id"]])
                labels.setdefault(annotation["image_id"], set()).update(() if label is None else (label,))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{listed(path.name for path in paths)} in {paths[0].parent}: an image, annotation or category lacks what "
            f"it needs ({error!r}); get the file again"
        ) from error
    return Annotated(images, labels)


def of_one_class(images: Iterable[ImageFile]) -> list[ImageFile]:
    """The images of a location that lie in one class alone; a file has one name in all of its classes."""
    images = list(images)
    classes = Counter(Path(image.path).name for image in images)
    return [image for image in images if classes[Path(image.path).name] == 1]
