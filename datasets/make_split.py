"""Making your own split of a data set whose published split file is not at hand.

Half of each class trains, 20 % validate and 30 % are tested, as in CoOp's own splits; the draw of a class depends on
the seed and the class alone. Frames of one group of videos (`_g07_` in UCF101) stay in one part. Results on such a
split are not comparable with published ones, so it never bears the published file's name.
"""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

from dassl_clip.results.data_sets import name_key, read_entry
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import cache_dir, write_bytes_atomically
from dassl_clip.results.image_formats import is_image

from .folders import list_folder, list_images, match_classes, open_root
from .layouts import named_folders
from .spec import Spec, listed
from .splits import SplitFileDataset, contents_hint, image_bases

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
GROUP = re.compile(r"_g\d+_")
Labelled = list[tuple[str, int]]  # (path below the image folder, label)


def make_split(loader: type[SplitFileDataset], cfg, seed: int, target: str = "") -> Path:
    """Write a split of the images at hand, with a draw by the seed; into the cache folder if no `target` is named.

    Refused are data sets that need none, a target that bears the published name, and images that nothing labels.
    """
    name = loader.__name__
    if not issubclass(loader, SplitFileDataset) or loader.file not in READERS:
        raise UserError(f"{name} has no split file, so none can be made; its parts are in its folders or lists")
    spec, entry = loader.make_spec(cfg), read_entry(loader.file)
    path, folder = Path(target).expanduser(), cache_dir()
    if not target:
        if folder is None:
            raise UserError("DASSL_CLIP_CACHE is off: name the file to write, --make-split FILE")
        path = folder / "splits" / f"split_own_{name}_seed{seed}.json"
    if path.name == entry["split_file"] or path.name.startswith("split_zhou_"):
        raise UserError(f"{path} bears the name of the published split; choose another name")
    root = open_root(cfg.DATASET.ROOT, name)
    bases = image_bases(list(named_folders(root, (*spec.folders, *entry["image_folders"]))), entry["image_folders"])
    images = next((found for base in bases if (found := READERS[loader.file](base, spec))), None)
    if images is None:
        raise MissingFileError(f"{name}: no images that could be labelled in {listed(bases, 4)}.{contents_hint(bases)}")
    absent = sorted(set(range(len(spec.classes))) - {label for _, label in images})
    if absent:
        raise MissingFileError(f"{name}: no images of {listed(spec.classes[label] for label in absent)} in {root}")
    text = json.dumps(divided(images, spec, seed), ensure_ascii=False)
    write_bytes_atomically(path, text.encode("utf-8", "surrogateescape"))
    return path


def divided(images: Labelled, spec: Spec, seed: int) -> dict[str, list]:
    """The rows of a split file, by part."""
    rows: dict[str, list] = {part: [] for part in SHARES}
    for label, name in enumerate(spec.classes):
        groups: dict[str, list[str]] = {}
        for path, _ in sorted(image for image in images if image[1] == label):
            match = GROUP.search(path)
            groups.setdefault(match[0] if match else path, []).append(path)
        order = list(groups.values())
        random.Random(f"{seed}/{spec.name}/{label}").shuffle(order)
        total, done = sum(map(len, order)), 0
        for paths in order:
            part = "train" if done < SHARES["train"] * total else "val" if done < 0.7 * total else "test"
            rows[part] += [[path, label, name] for path in paths]
            done += len(paths)
    return {part: sorted(found, key=lambda row: (row[1], row[0])) for part, found in rows.items()}


def class_folders(base: Path, spec: Spec) -> Labelled:
    """Images in a folder for each class."""
    found = match_classes(base, spec)
    return [(f"{folder.name}/{name}", label) for label, folder in found.items() for name in list_images(folder)]


def scene_folders(base: Path, spec: Spec) -> Labelled:
    """Images in SUN397's folders: the words of a name from the last to the first, below its first letter."""
    images = []
    for label, name in enumerate(spec.classes):
        steps = name.split(" ")[::-1]
        folder = os.path.join(steps[0][0], *steps)
        if (base / folder).is_dir():
            images += [(f"{folder}/{file}", label) for file in list_folder(base / folder)[1] if is_image(file)]
    return images


def names_of_files(base: Path, spec: Spec) -> Labelled:
    """Images whose names begin with that of the class: `Abyssinian_100.jpg`."""
    keys = spec.class_keys()
    labels = [(name, keys.get(name_key(name.rpartition("_")[0]))) for name in list_folder(base)[1] if is_image(name)]
    return [(name, label) for name, label in labels if label is not None]


def flower_labels(base: Path, spec: Spec) -> Labelled:
    """Images numbered from 1 on, with the labels of imagelabels.mat."""
    from scipy.io import loadmat

    files = [folder / "imagelabels.mat" for folder in (base, base.parent)]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return []
    labels = loadmat(path)["labels"].ravel()
    matches = {name: re.fullmatch(r"image_(\d+)\.jpg", name) for name in list_folder(base)[1]}
    numbers = {name: int(match[1]) for name, match in matches.items() if match}
    return [(name, int(labels[number - 1]) - 1) for name, number in numbers.items() if 1 <= number <= len(labels)]


def car_labels(base: Path, spec: Spec) -> Labelled:
    """Images of cars_train/ and cars_test/ with the labels of the devkit's .mat files."""
    from scipy.io import loadmat

    images = []
    for part, names in (
        ("cars_train", ("devkit/cars_train_annos.mat",)),
        ("cars_test", ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")),
    ):
        path = next((base / name for name in names if (base / name).is_file()), None)
        if path is not None:
            rows = loadmat(path)["annotations"].ravel()
            images += [(f"{part}/{row['fname'].item()}", int(row["class"].item()) - 1) for row in rows]
    return images


READERS: dict[str, Callable[[Path, Spec], Labelled]] = {
    **dict.fromkeys(("caltech101", "food101", "dtd", "eurosat", "ucf101"), class_folders),
    "sun397": scene_folders,
    "oxford_pets": names_of_files,
    "oxford_flowers": flower_labels,
    "stanford_cars": car_labels,
}
