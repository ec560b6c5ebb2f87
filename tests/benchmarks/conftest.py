"""The scripts of `benchmarks/` as modules, and arguments for a small CLIP of random weights."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def script():
    """A function that imports a script by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module", autouse=True)  # before what a module shares is made
def settings_of_the_process():
    """What a script sets for its own process is put back: the level of our log, the number of threads."""
    log, threads = logging.getLogger("dassl_clip"), torch.get_num_threads()
    level = log.level
    yield
    log.setLevel(level or logging.INFO)  # a script may have been the first to set up the log
    torch.set_num_threads(threads)


@pytest.fixture
def small(tiny_clip):
    """Arguments that make a script small."""
    return ["--architecture", f"local-dir:{tiny_clip}", "--threads", "1", "--repeats", "1", "--budget", "1"]
