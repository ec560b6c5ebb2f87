"""What the tests of the embedded world share: its folders, the rows of its split and its model."""

import pytest
import torch
from build_icons.model import read_model
from build_icons.store import read_split

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
