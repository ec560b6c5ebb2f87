"""Trainers that see what they may not are caught by the check that names it, and by no other; honest twins pass.

Covers: the groups labels, images and classes on nine planted cheats (`cheats.py`), and their twins. A cheat goes
through the check that names it and those whose failures this one explains; a twin of each kind of trainer through all.
"""

from pathlib import Path

import pytest

from dassl_clip.checks.session import Session
from dassl_clip.checks.suite import FAILS, choose, load_checks, run_checks
from dassl_clip.clip.sharing import shared_backbones
from dassl_clip.engine import registry

FILE = str(Path(__file__).with_name("cheats.py"))
PLAIN = (("INPUT.SIZE", "(16, 16)"), ("OPTIM.NAME", "sgd"), ("OPTIM.LR", "0.1"), ("OPTIM.MAX_EPOCH", "3"),
         ("VERBOSE", "False"))  # fmt: skip
CHEATS = {
    "PairsOfClasses": "labels.train",
    "CountsTestLabels": "classes.absent",
    "TrainsOnValidation": "labels.val",
    "BestEpochOnTest": "labels.selection",
    "NormalisesBatch": "images.batch",
    "LeakyCache": "images.domains",
    "PromptsOnTest": "images.swapped",
    "RemembersNames": "images.names",
    "PeeksAtLabels": "labels.scoring",
}
ALL = ("labels", "images", "classes")
TWINS = {
    "HonestFields": ALL,
    "PromptsOnTraining": ("labels", "images"),
    "PairsByName": ("labels.train",),
    "BestEpochOnTraining": ("labels.selection",),
    "NormalisesImage": ("images.batch",),
    "CacheByDomain": ("images.domains",),
}


@pytest.fixture(scope="module", autouse=True)
def trainers():
    registry.register()
    registry.import_user_code(FILE)
    with shared_backbones():
        yield


def failures(name: str, folder: Path, only: tuple[str, ...]) -> dict[str, str]:
    pairs = () if hasattr(registry.trainer_class(name), "settings") else PLAIN
    session = Session(name, folder, (FILE,), pairs=pairs)
    return {result.name: result.evidence for result in run_checks(session, choose(only)) if result.verdict == FAILS}


@pytest.mark.parametrize(("name", "check"), CHEATS.items())
def test_a_cheat_is_caught_by_its_check_alone(name, check, tmp_path):
    explained = (other.name for other in load_checks().values() if check in other.explained_by)
    found = failures(name, tmp_path, (check, *explained))
    assert list(found) == [check], found


@pytest.mark.parametrize(("name", "only"), TWINS.items())
def test_an_honest_twin_passes(name, only, tmp_path):
    assert failures(name, tmp_path, only) == {}
