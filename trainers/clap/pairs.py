"""What CLAP's head is trained on: texts of a template, of random words or of a file; or images (Im.Aug).

The features of all texts, and of all views of the images, are computed once and cached on disk. Im.Aug's authors draw a
new view in every step; here each image has `IMAGE_VIEWS` augmented ones, and a step draws one of them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import ColorJitter, Compose, InterpolationMode, RandomResizedCrop, ToTensor
from yacs.config import CfgNode

from dassl.data.datasets import Datum
from dassl_clip.engine import feature_cache, sharding
from dassl_clip.engine.data import SeededImages, mix_seed
from dassl_clip.results.errors import MissingFileError, UserError, closest

from .texts import Augmentation, TextTables, WordDropping, file_texts, random_word_texts, source_tables, template_tables
from .training import ORDERS, SHUFFLED, ImagePairs, PromptNoise, TextPairs

logger = logging.getLogger(__name__)

MODALITIES = ("text", "image")
SOURCES = ("template", "random-words")  # or a file
CROP = (0.64, 1.0)  # of the area, square
PAIR_KEYS = {
    "MODALITY": "text",  # text, or image for Im.Aug
    "SOURCE": "template",  # template, random-words, or a file with one text a line, {} for the class name
    "DROP_SIZE": 0.5,
    "DROP_COLOUR": 0.5,
    "DROP_TYPE_STYLE": 0.0,  # both by one decision
    "DROP_TYPE": 0.0,
    "DROP_STYLE": 0.0,
    "SWAP": 0.5,
    "DROP_WORD": 0.25,  # of sources other than the template
    "NOISE_TOKENS": 0,  # noise embeddings beside an augmented prompt
    "NOISE_STD": 0.02,
    "BATCH_ORDER": SHUFFLED,  # all texts (or images) in a new order in each pass, or in-turn: the classes in turn
    "TRAINING_NAMES": (),  # pairs of a class and its name in training texts, where that is another
    "IMAGE_FOLDER": "",  # of Im.Aug: one folder of images per class
    "IMAGE_VIEWS": 8,  # augmented views of each image, each against the plain one
    "IMAGE_JITTER": (0.5, 0.0, 0.0, 0.3),  # brightness, contrast, saturation, hue
}


FIT_KEYS = ("SOURCE", "DROP_SIZE", "DROP_COLOUR", "DROP_TYPE_STYLE", "DROP_TYPE", "DROP_STYLE", "SWAP", "DROP_WORD")
FIT_KEYS += ("NOISE_TOKENS", "NOISE_STD")
# Keys of the other modality; of texts also those of the template's parts where the texts come from elsewhere.
OVERRIDDEN_PAIRS = {
    **{key: ("MODALITY", lambda node: node.MODALITY == "image") for key in (*FIT_KEYS, "TRAINING_NAMES")},
    **{key: ("MODALITY", lambda node: node.MODALITY != "image") for key in PAIR_KEYS if key.startswith("IMAGE_")},
}


def check_pair_keys(node: CfgNode) -> None:
    """Refuse impossible values of `PAIR_KEYS`.

    Raises:
        UserError: An unknown modality, no folder of pictures, too few views, a jitter that is none, or a probability
            outside 0 to 1.
        MissingFileError: The source is neither a known one nor a file.
    """
    if node.MODALITY not in MODALITIES:
        raise UserError(f"TRAINER.CLAP.MODALITY is {node.MODALITY!r}; expected one of {', '.join(MODALITIES)}")
    if node.MODALITY == "image" and (not node.IMAGE_FOLDER or node.IMAGE_VIEWS < 1):
        raise UserError(
            "TRAINER.CLAP.MODALITY image trains on images: set TRAINER.CLAP.IMAGE_FOLDER to a folder with one folder "
            f"of images per class, and IMAGE_VIEWS to 1 or more (now {node.IMAGE_VIEWS})"
        )
    if node.BATCH_ORDER not in ORDERS:
        raise UserError(f"TRAINER.CLAP.BATCH_ORDER is {node.BATCH_ORDER!r}; expected one of {', '.join(ORDERS)}")
    pairs = node.TRAINING_NAMES
    if any(not isinstance(pair, (list, tuple)) or [*map(type, pair)] != [str, str] for pair in pairs):
        raise UserError(
            f"TRAINER.CLAP.TRAINING_NAMES is {pairs!r}; expected pairs of a class and its name in training texts, such "
            "as (('flowers', 'flower'),)"
        )
    jitter = tuple(node.IMAGE_JITTER)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            f"TRAINER.CLAP.IMAGE_JITTER is {jitter}; expected four numbers of at least 0 (brightness, contrast, "
            "saturation, hue), the last at most 0.5"
        )
    if node.SOURCE not in SOURCES and not Path(node.SOURCE).expanduser().is_file():
        raise MissingFileError(
            f"TRAINER.CLAP.SOURCE is {node.SOURCE!r}; expected {', '.join(SOURCES)}, or a text file with one text a "
            "line and {} for the class name; there is no such file"
        )
    if node.NOISE_TOKENS < 0 or node.NOISE_STD < 0:
        raise UserError(
            f"TRAINER.CLAP.NOISE_TOKENS and NOISE_STD are at least 0, got {node.NOISE_TOKENS} and {node.NOISE_STD}"
        )
    _augmentations(node, 0)


def _augmentations(node: CfgNode, seed: int) -> tuple[Augmentation, WordDropping]:
    """Of the template's texts, and of others."""
    chances = (node.DROP_SIZE, node.DROP_COLOUR, node.DROP_TYPE_STYLE, node.SWAP, node.DROP_TYPE, node.DROP_STYLE)
    return Augmentation(*chances), WordDropping(drop=node.DROP_WORD, swap=node.SWAP, seed=seed)


def text_tables(classnames: Sequence[str], node: CfgNode, seed: int) -> TextTables:
    """All texts of a training run.

    Raises:
        UserError: A class has no text, or the file has a line without one `{}`.
    """
    augmentation, dropping = _augmentations(node, seed)
    if node.SOURCE == "template":
        return template_tables(classnames, augmentation)
    if node.SOURCE == "random-words":
        texts = [random_word_texts(name, seed=seed) for name in classnames]
    else:
        lines = Path(node.SOURCE).expanduser().read_text(encoding="utf-8").splitlines()
        texts = [file_texts(name, lines) for name in classnames]
    return source_tables(classnames, texts, dropping)


def text_pairs(trainer) -> tuple[TextPairs, dict]:
    """The batches of text features that the head is trained on, and what names them (`engine/feature_cache.py`)."""
    node, text, seed = trainer.node, trainer.backbone.text, max(trainer.cfg.SEED, 0)
    tables = text_tables(training_names(trainer.classnames, node.TRAINING_NAMES), node, seed)
    logger.info("%d distinct texts of %d classes", len(tables.texts), len(tables.classnames))
    features = trainer.features.texts(tables.texts)
    noise = None
    if node.NOISE_TOKENS:
        noise = PromptNoise(text, tables, node.NOISE_TOKENS, node.NOISE_STD, trainer.precision.autocast)
    facts = (
        {key: node[key] for key in (*FIT_KEYS, "BATCH_ORDER")}
        | feature_cache.text_facts(tables.texts)
        | trainer.features.tower_facts
    )
    return TextPairs(tables, features, node.BATCH_SIZE, seed, noise, node.BATCH_ORDER), facts


def training_names(classnames: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[str]:
    """The names of the classes in training texts: those of the pairs of a class and its name, else the class names.

    Case, blanks, `_` and `-` of the pairs' classes do not count. A pair of a class that is not there plays no part.
    """
    others = {_plain(classname): name for classname, name in pairs}
    if absent := [classname for classname, _ in pairs if _plain(classname) not in map(_plain, classnames)]:
        logger.warning("TRAINER.CLAP.TRAINING_NAMES: there is no class %s here", ", ".join(absent[:8]))
    return [others.get(_plain(name), name) for name in classnames]


def image_pairs(trainer) -> tuple[ImagePairs, dict]:
    """The same for features of a plain and of augmented views of images (Im.Aug: square crop, colour jitter)."""
    node, seed = trainer.node, max(trainer.cfg.SEED, 0)
    items = class_pictures(Path(node.IMAGE_FOLDER).expanduser(), trainer.classnames)
    sizes = (len(items), len(trainer.classnames), node.IMAGE_VIEWS)
    logger.info("Im.Aug: %d images of %d classes, %d augmented views each", *sizes)
    facts = {"kind": "plain and augmented views", "views": node.IMAGE_VIEWS, "seed": seed, "crop": CROP}
    facts |= {"jitter": list(node.IMAGE_JITTER)} | feature_cache.image_facts([item.impath for item in items])
    facts |= trainer.features.tower_facts | {"bad images": trainer.features.on_bad_image}
    features = feature_cache.cached(facts, lambda: _views(trainer, items, seed))
    usable = features.isfinite().flatten(1).all(dim=1)
    features = features[usable].to(trainer.device)
    labels = torch.tensor([item.label for item in items])
    counts = torch.bincount(labels[usable.cpu()], minlength=len(trainer.classnames))
    if not counts.all():
        raise UserError(
            f"TRAINER.CLAP.IMAGE_FOLDER {node.IMAGE_FOLDER}: no image of {trainer.classnames[int(counts.argmin())]!r} "
            "can be decoded; each class needs one"
        )
    facts |= feature_cache.text_facts(trainer.classnames) | {"order": node.BATCH_ORDER}
    return ImagePairs(features, counts, node.BATCH_SIZE, seed, node.BATCH_ORDER), facts


def _views(trainer, items: Sequence[Datum], seed: int) -> Tensor:
    """Features of the plain and the augmented views, `[N, V, E]`; NaN for images that cannot be decoded."""
    backbone = trainer.backbone
    crop = RandomResizedCrop(
        backbone.image_size, CROP, ratio=(1.0, 1.0), interpolation=InterpolationMode(backbone.interpolation)
    )
    augment = Compose([crop, ColorJitter(*trainer.node.IMAGE_JITTER), ToTensor(), backbone.normalize()])
    like, views = trainer.features, []
    for number in range(1 + trainer.node.IMAGE_VIEWS):
        transform = augment if number else backbone.preprocess()
        images = SeededImages(trainer.cfg, items, transform=transform, is_train=True)
        images.view_seed.fill_(mix_seed(seed, number))
        loader = DataLoader(images, batch_size=like.batch_size, num_workers=like.num_workers)
        own = ((like.encode_batch(batch, like.encode),) for batch in sharding.shard_batches(loader))
        views.append(torch.cat([rows for (rows,) in sharding.merge_shards(own, loader)]))
    return torch.stack(views, dim=1)


def class_pictures(folder: Path, classnames: Sequence[str]) -> list[Datum]:
    """The pictures of a folder with one folder a class; case, blanks, `_` and `-` in names do not count.

    Raises:
        MissingFileError: There is no such folder.
        UserError: A class has no folder, or an empty one.
    """
    if not folder.is_dir():
        raise MissingFileError(f"TRAINER.CLAP.IMAGE_FOLDER: there is no folder {folder}")
    there = {_plain(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    items, empty = [], []
    for label, name in enumerate(classnames):
        own = there.get(_plain(name))
        files = sorted(own.rglob("*")) if own is not None else []
        found = [path for path in files if path.suffix.lower() in IMG_EXTENSIONS]
        empty += [] if found else [name]
        items += [Datum(impath=str(path), label=label, classname=name) for path in found]
    if empty:
        near = closest(empty[0], [path.name for path in there.values()])
        hint = f" Is {empty[0]!r} the folder {near[0]!r}?" if near else ""
        raise UserError(
            f"{folder} has no pictures for {len(empty)} of {len(classnames)} classes: {', '.join(empty[:8])}"
            f"{', ...' if len(empty) > 8 else ''}.{hint} It has {len(there)} folders; each class needs one with at "
            "least one picture"
        )
    return items


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")
