"""The pre-training corpus: pictures of other designers' packs, their words and styles, and their enclosed regions."""

import hashlib
import logging
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from scipy import ndimage

from dassl_clip.results.files import write_atomically

from .fetch import Icon, read_icons
from .names import common_words, concepts_of, read_lexicon, segment, tokens_of
from .packs import packs_for
from .render import PIXELS, render_many, svg_document
from .selection import near_duplicates, read_curated

logger = logging.getLogger(__name__)

MAX_REGIONS = 7
MIN_REGION = 6
INK = 128
SKIPPED_IN_NAMES = ("skin-tone",)
RUN_TOGETHER = ("fxemoji",)
MIN_USES_TO_CUT = 5


@dataclass
class Corpus:
    """Pictures with their words; row i of every array belongs to `names[i]`."""

    pictures: np.ndarray  # uint8 [N, P, P, 3]
    regions: np.ndarray  # uint8 [N, P, P]; 0 outside, 1.. the nearest enclosed region
    names: list[tuple[str, str]]  # pack, icon
    phrases: list[str]
    styles: list[str]
    palette: np.ndarray  # bool [N]
    concepts: list[list[int]]
    vocabulary: list[str]
    counts: dict[str, int]


def enclosed_regions(picture: np.ndarray) -> np.ndarray:
    """Regions of paper enclosed by ink, spread to the pixels between them.

    Args:
        picture: uint8 [P, P, 3], dark ink on white.

    Returns:
        uint8 [P, P]: 0 where the nearest paper is the outside, else 1 to `MAX_REGIONS`, large regions first.
    """
    paper = picture.astype(np.uint16).mean(axis=-1) > INK
    labels, _ = ndimage.label(paper)
    sizes = np.bincount(labels.ravel())
    border = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    inner = [i for i in np.argsort(-sizes, kind="stable") if i and i not in border and sizes[i] >= MIN_REGION]
    table = np.zeros(len(sizes), dtype=np.uint8)
    for rank, label in enumerate(inner[:MAX_REGIONS]):
        table[label] = rank + 1
    if not inner or not paper.any():
        return np.zeros(paper.shape, dtype=np.uint8)
    rows, columns = ndimage.distance_transform_edt(~paper, return_distances=False, return_indices=True)
    return table[labels[rows, columns]]


def candidate_icons(cache: Path) -> tuple[list[Icon], list[tuple[str, str]]]:
    """The icons of all pre-training packs that may be used, and the style and bare name of each."""
    icons, kinds = [], []
    for pack in packs_for("pretrain"):
        for icon in read_icons(pack, cache):
            kind = pack.classify(icon.name)
            if kind is not None and not any(part in icon.name for part in SKIPPED_IN_NAMES):
                icons.append(icon)
                kinds.append(kind)
    return icons, kinds


def data_icons(cache: Path) -> list[Icon]:
    """The icons of the curated list, in its order.

    Raises:
        FileNotFoundError: if a pack lacks one of them.
    """
    found = {(icon.pack, icon.name): icon for pack in packs_for("data") for icon in read_icons(pack, cache)}
    wanted = [(picture.pack, picture.icon) for picture in read_curated()]
    missing = [f"{pack}:{icon}" for pack, icon in wanted if (pack, icon) not in found]
    if missing:
        raise FileNotFoundError(f"{len(missing)} curated icons are not in the fetched packs: {', '.join(missing[:8])}.")
    return [found[key] for key in wanted]


def rendered(icons: Sequence[Icon], name: str, cache: Path, workers: int) -> np.ndarray:
    """The icons' pictures, kept in the cache under a key of their SVGs."""
    digest = hashlib.sha256(str(PIXELS).encode())
    for icon in icons:
        digest.update(svg_document(icon).encode("utf-8"))
    path = cache / "render" / f"{name}-{digest.hexdigest()[:16]}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # another process that builds waits, and reads
        if not path.is_file():
            logger.info("rendering %d icons (%s)", len(icons), name)
            pictures = render_many(icons, workers=workers)
            write_atomically(path, lambda file: np.save(file, pictures))
    return np.load(path)


def regions_of(pictures: np.ndarray, workers: int) -> np.ndarray:
    """`enclosed_regions` of every picture, uint8 [N, P, P]."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return np.stack(pool.map(enclosed_regions, pictures, chunksize=512))


def words_in_names(rows: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Tokens of every (pack, bare name); run-together names are cut into words that other packs use."""
    known: Counter[str] = Counter()
    for pack, bare in rows:
        if pack not in RUN_TOGETHER:
            known.update(set(tokens_of(bare)))
    vocabulary = {word for word, n in known.items() if n >= MIN_USES_TO_CUT}
    noise = set(read_lexicon()["noise"])
    tokens = []
    for pack, bare in rows:
        words = tokens_of(bare)
        if pack in RUN_TOGETHER:
            words = tuple(part for word in words for part in segment(word, vocabulary) if part not in noise)
        tokens.append(words)
    return tokens


def build_corpus(cache: Path, held_out: str = "", workers: int = 2) -> Corpus:
    """Fetch, render and read the pre-training pictures; drop near-duplicates of the data set and what shows no concept.

    Args:
        cache: folder of downloads and renderings.
        held_out: style family to leave out, with its words and with packs that repeat its drawings.
        workers: processes that render.
    """
    icons, kinds = candidate_icons(cache)
    pictures = rendered(icons, "pretrain", cache, workers)
    repeated, _ = near_duplicates(pictures, rendered(data_icons(cache), "data", cache, workers))
    packs = {pack.pack: pack for pack in packs_for("pretrain")}
    allowed = [style != held_out and not packs[icon.pack].drops(held_out) for icon, (style, _) in zip(icons, kinds)]
    counts = {"candidates": len(icons), "near_duplicates": int(repeated.sum()), "held_out": allowed.count(False)}
    kept = [i for i in range(len(icons)) if allowed[i] and not repeated[i]]
    tokens = words_in_names([(icons[i].pack, kinds[i][1]) for i in kept])
    words = set(common_words((icons[i].pack, names) for i, names in zip(kept, tokens)))
    concepts = [concepts_of(names, words) for names in tokens]
    useful = [position for position, found in enumerate(concepts) if found]
    counts["without_concept"] = len(kept) - len(useful)
    chosen = [kept[position] for position in useful]
    vocabulary = sorted({concept for found in concepts for concept in found})
    number = {concept: i for i, concept in enumerate(vocabulary)}
    counts |= {"pictures": len(chosen), "concepts": len(vocabulary), "packs": len({icons[i].pack for i in chosen})}
    pictures = np.ascontiguousarray(pictures[chosen])
    logger.info("pre-training corpus: %s", counts)
    return Corpus(
        pictures=pictures,
        regions=regions_of(pictures, workers),
        names=[(icons[i].pack, icons[i].name) for i in chosen],
        phrases=[" ".join(tokens[position]) for position in useful],
        styles=[kinds[i][0] for i in chosen],
        palette=np.array([icons[i].palette for i in chosen]),
        concepts=[[number[concept] for concept in concepts[position]] for position in useful],
        vocabulary=vocabulary,
        counts=counts,
    )
