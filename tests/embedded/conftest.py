"""What the tests of the embedded world share: its folders, the rows of its split and its model."""

import numpy as np
import pytest
import torch
from build_icons import captions as cap
from build_icons.corpus import Corpus
from build_icons.merges import restricted_merges, write_merges
from build_icons.model import read_model
from build_icons.recipe import Recipe
from build_icons.store import read_split
from open_clip.tokenizer import SimpleTokenizer

from dassl_clip.embedded import CLIP_FOLDER, ICONS_FOLDER


@pytest.fixture(scope="session")
def rows():
    return read_split(ICONS_FOLDER)


@pytest.fixture(scope="session")
def classes(rows):
    return sorted({row["class"] for row in rows})


@pytest.fixture(scope="session")
def small_clip():
    """Model, tokenizer and config as plain open_clip builds them."""
    torch.manual_seed(0)
    return read_model(CLIP_FOLDER)


@pytest.fixture(scope="session")
def tiny():
    """A corpus of twelve squares and bars in two styles, and a model small enough to train in seconds."""
    pictures = np.full((12, 64, 64, 3), 255, dtype=np.uint8)
    for i in range(12):
        if i % 2:
            pictures[i, 10 + i : 50, 28:36] = 0
        else:
            pictures[i, 12 : 44 + i, 12 : 44 + i] = 0
    corpus = Corpus(
        pictures=pictures,
        regions=np.zeros((12, 64, 64), dtype=np.uint8),
        names=[("p", str(i)) for i in range(12)],
        phrases=["bar" if i % 2 else "square" for i in range(12)],
        styles=[("line", "solid", "flat")[i // 2 % 3] for i in range(12)],
        palette=np.zeros(12, dtype=bool),
        concepts=[[i % 2] for i in range(12)],
        vocabulary=["square", "bar"],
        counts={},
    )
    architecture = {
        "pixels": 64, "vision_width": 16, "vision_layers": (1, 1, 1, 1), "embed_dim": 16, "context_length": 24,
        "text_width": 16, "text_heads": 2, "text_layers": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3,
    }  # fmt: skip
    recipe = Recipe(samples=8 * 36, batch=8, warm_up=2, lr=4e-3, architecture=tuple(architecture.items()))
    return corpus, recipe


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "bpe.txt.gz"
    write_merges(restricted_merges([*cap.words_of_captions(), "square", "bar"]), path)
    return SimpleTokenizer(bpe_path=str(path), context_length=24), path
