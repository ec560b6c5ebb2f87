"""`engine/declared.py` against the registries and the classes, once these are imported.

Covers: the names of trainers and data sets, with the toolbox's; every declared key and, where it is written out, its
default; class attributes, own and inherited; other names of trainers, which are not inherited.
"""

import pytest

from dassl_clip.engine import catalogue, declared, registry
from dassl_clip.engine.config import declared_config, default_config, known_keys
from dassl_clip.results.protocols import flatten_config


@pytest.fixture(scope="module", autouse=True)
def filled():
    registry.register()


def shipped(names, find):
    """Those of the plugin and the toolbox; other tests, and checks of methods, register their own."""
    modules = {name: find(name).__module__ for name in names}
    theirs = {name for name, module in modules.items() if module.startswith("dassl_clip.checks.")}
    return [name for name in names if modules[name].split(".")[0] in ("dassl_clip", "dassl") and name not in theirs]


def test_names_are_those_of_the_registries():
    assert declared.registered_names("TRAINER") == shipped(registry.trainer_names(), registry.trainer_class)
    assert declared.registered_names("DATASET") == shipped(registry.dataset_names(), registry.dataset_class)
    assert declared.trainer_names() == catalogue.trainer_names()


def test_keys_and_defaults_are_those_of_the_classes():
    expected, found = default_config(), declared_config()
    ours = {name.upper() for name in declared.trainer_names()}
    for node in set(expected.TRAINER) - ours - set(found.TRAINER):  # of trainers that other tests registered
        del expected.TRAINER[node]
    assert sorted(known_keys(found)) == sorted(known_keys(expected))
    expected, found = flatten_config(expected), flatten_config(found)
    assert {key: value for key, value in found.items() if value is not None and value != expected[key]} == {}
    computed = [key for key, value in found.items() if value is None and expected[key] is not None]
    assert len(computed) < 0.1 * sum(key.startswith("TRAINER.") for key in found)


FACTS = ("is_reference", "refines", "trains_on_labels", "extra_tests", "fixed_in_record", "setting_labels")


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("trainer", declared.trainer_names())
def test_class_attributes(trainer, fact):
    assert declared.trainer_fact(trainer, fact) == getattr(registry.trainer_class(trainer), fact, None)


def test_other_names_belong_to_one_trainer_each():
    names = [name.lower() for trainer in declared.trainer_names() for name in (trainer, *declared.aliases(trainer))]
    assert len(names) == len(set(names)) > len(declared.trainer_names())
    for trainer in declared.trainer_names():
        assert declared.aliases(trainer) == vars(registry.trainer_class(trainer)).get("aliases", ())
