"""Trainers that see what they may not are caught by the check that names it, and by no other; honest twins pass.

Covers: the groups labels, images and classes on nine planted cheats (`cheats.py`), and their twins.
"""

from pathlib import Path

import pytest

from dassl_clip.checks.session import Session
from dassl_clip.checks.suite import FAILS, choose, run_checks
from dassl_clip.clip.sharing import shared_backbones
from dassl_clip.engine import registry

FILE = str(Path(__file__).with_name("cheats.py"))
PLAIN = (("INPUT.SIZE", "(16, 16)"), ("OPTIM.NAME", "sgd"), ("OPTIM.LR", "0.1"), ("OPTIM.MAX_EPOCH", "4"),
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
TWINS = ("PairsByName", "HonestFields", "BestEpochOnTraining", "NormalisesImage", "CacheByDomain", "PromptsOnTraining")


@pytest.fixture(scope="module", autouse=True)
def trainers():
    registry.register()
    registry.import_user_code(FILE)
    with shared_backbones():
        yield


def failures(name: str, folder: Path) -> dict[str, str]:
    from dassl_clip.checks.suite import load_checks

    load_checks()
    pairs = () if hasattr(registry.trainer_class(name), "settings") else PLAIN
    session = Session(name, folder, (FILE,), pairs=pairs)
    results = run_checks(session, choose(("labels", "images", "classes")))
    return {result.name: result.evidence for result in results if result.verdict == FAILS}


@pytest.mark.parametrize(("name", "check"), CHEATS.items())
def test_a_cheat_is_caught_by_its_check_alone(name, check, tmp_path):
    found = failures(name, tmp_path)
    assert list(found) == [check], found


@pytest.mark.parametrize("name", TWINS)
def test_an_honest_twin_passes(name, tmp_path):
    assert failures(name, tmp_path) == {}
