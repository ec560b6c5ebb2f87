"""What is written down about a build: recipe, counts, hashes, and accuracies per domain and prompt."""

import platform
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .corpus import Corpus
from .measure import PROMPTS, class_features, image_features, pixels_of, zero_shot
from .model import CONFIG_NAME, MERGES_NAME, WEIGHTS_NAME
from .names import LEXICON_FILE
from .packs import PACKS_FILE
from .recipe import Recipe
from .selection import CURATED_FILE
from .store import file_digest, read_png, read_split
from .vocabulary import RESERVE_FILE, WORDS_FILE

RECIPE_FILES = (PACKS_FILE, LEXICON_FILE, WORDS_FILE, CURATED_FILE, RESERVE_FILE)
SPREAD = 2.5
PARTS = {"all": ("train", "val", "test"), "val": ("train", "val"), "test": ("test",)}


def features_of(model: CLIP, config: dict, rows: list[dict[str, str]], icons: Path) -> Tensor:
    """Normalised image features [N, E] of rows of the split file."""
    return image_features(model, pixels_of(np.stack([read_png(icons / row["path"]) for row in rows]), config))


def measure_folder(model: CLIP, tokenizer: SimpleTokenizer, config: dict, icons: Path) -> dict:
    """Zero-shot tables of a model on a written data set.

    Returns:
        for `all` pictures, those of `val` (train and val together) and `test`: prompt, domain (or mean), percent.
    """
    rows = read_split(icons)
    classes = sorted({row["class"] for row in rows})
    features = features_of(model, config, rows, icons)
    tables = {}
    for part, splits in PARTS.items():
        chosen = [i for i, row in enumerate(rows) if row["split"] in splits]
        tables[part] = zero_shot(
            model,
            tokenizer,
            features[chosen],
            [classes.index(rows[i]["class"]) for i in chosen],
            [rows[i]["domain"] for i in chosen],
            classes,
        )
    return tables


def modality_gap(model: CLIP, tokenizer: SimpleTokenizer, config: dict, icons: Path) -> float:
    """Distance between the mean image feature and the mean class feature."""
    rows = read_split(icons)
    classes = sorted({row["class"] for row in rows})
    centre = features_of(model, config, rows, icons).mean(dim=0)
    return (centre - class_features(model, tokenizer, classes, PROMPTS[0]).mean(dim=0)).norm().item()


def build_record(
    model: CLIP, tokenizer: SimpleTokenizer, config: dict, recipe: Recipe, corpus: Corpus, folder: Path, icons: Path,
    seconds: float,
) -> dict:  # fmt: skip
    """The content of `build.json`.

    Args:
        model: the written model, read again.
        tokenizer: its tokenizer.
        config: its config.
        recipe: what it was made with.
        corpus: what it was trained on.
        folder: where its files lie.
        icons: the data set's folder.
        seconds: of training.
    """
    tables = measure_folder(model, tokenizer, config, icons)
    return {
        "recipe": recipe.describe(),
        "recipe_sha256": recipe.sha256(*RECIPE_FILES),
        "corpus": corpus.counts,
        "files": {name: file_digest(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME, MERGES_NAME)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (folder / WEIGHTS_NAME).stat().st_size,
        "logit_scale": round(model.logit_scale.exp().item(), 2),
        "modality_gap": round(modality_gap(model, tokenizer, config, icons), 3),
        "zero_shot": {
            part: {prompt: {name: round(value, 2) for name, value in row.items()} for prompt, row in table.items()}
            for part, table in tables.items()
        },
        "spread": SPREAD,
        "seconds": round(seconds),
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "threads": torch.get_num_threads(),
        },
    }
