"""The tasks: what each asks of every run, and which methods and data sets fit it.

`lodo` leaves one domain out: every domain of the data set is the target once, the others are the sources. `fewshot`
stays inside a domain (or a data set without domains): trained on a few images per class, tested on the held-out part.
`zeroshot` tests every image of each domain (without domains: the published test images, or every image of your own
folders and lists) and trains on no label; `probe` and `attacks` do the same with few-shot probes of the features, and
with attacked images. `styles` reads whether class names are tied to styles, on images of a domain that `fewshot` does
not test. `b2n` trains on the base classes of a data set and evaluates base and new ones; `xd` and `dg` train on a data
set (the papers': ImageNet) and evaluate on ten others, or on its variants. In a data set with domains other domains
take the place of other data sets: `xd` trains on base classes and evaluates new ones there, `dg` keeps the classes.
`batch`, `stream` and `online` test all images of a domain as lodo does, then again in batches, in streams and one at a
time (`engine/scenarios.py`); without domains they test what fewshot tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dassl_clip.engine import catalogue, registry
from dassl_clip.engine.scenario_cases import TASKS as SCENARIOS
from dassl_clip.results.errors import UserError, did_you_mean

from .identity import is_ours


@dataclass(frozen=True)
class Task:
    """What a task asks of every run.

    Attributes:
        across: the target's fellow domains are the sources; otherwise the target is its own source.
        label_free: for methods that train on no labels; all images of a domain are tested.
        extra_tests: the further tests that a method takes, of those that it can take.
        needs_tests: for methods that can take them alone.
        needs_domains: for data sets with domains alone.
        tested_on: data sets on which the trained run is evaluated too (`plan.py`).
        new_classes: train on the base classes, evaluate on the new ones too (`plan.py`); with `tested_on` only in
            a data set with domains.
        scenario: value of SCENARIOS.TASK; the target's fellow domains, where there are some, are the sources.
    """

    across: bool = False
    label_free: bool = False
    extra_tests: tuple[str, ...] = ()
    needs_tests: bool = False
    needs_domains: bool = False
    tested_on: tuple[str, ...] = ()
    new_classes: bool = False
    scenario: str = ""

    @property
    def transfers(self) -> bool:
        """Whether one run is trained and others evaluate it."""
        return bool(self.tested_on) or self.new_classes

    @property
    def has_validation(self) -> bool:
        """Whether its runs have validation images of the source that are not tested."""
        return not (self.label_free or self.needs_tests or self.transfers or self.scenario)


TASKS = {
    "fewshot": Task(),
    "lodo": Task(across=True),
    "zeroshot": Task(label_free=True, extra_tests=("forms",)),
    "probe": Task(label_free=True, extra_tests=("probe",), needs_tests=True),
    "attacks": Task(label_free=True, extra_tests=("attacks",), needs_tests=True),
    "styles": Task(extra_tests=("styles",), needs_tests=True, needs_domains=True),
    "b2n": Task(new_classes=True),
    "xd": Task(
        new_classes=True,
        tested_on=(
            "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
            "eurosat", "ucf101",
        )
    ),
    "dg": Task(tested_on=("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")),
    **{name: Task(scenario=name) for name in SCENARIOS},
}  # fmt: skip


def task_names(given: Sequence[str], config: Any) -> list[str]:
    """The tasks to run: those given, or the method's own, or the data set's, or lodo (fewshot without domains).

    Raises:
        UserError: an unknown task.
    """
    of_method = config.TRAINER.get(config.TRAINER.NAME.upper(), {}).get("TASKS", ())
    usual = "lodo" if dataset_domains(config) else "fewshot"
    names = list(given) or list(of_method) or list(config.DATASET.get("TASKS", ())) or [usual]
    check_names(names)
    return names


def check_names(names: Sequence[str]) -> None:
    """Refuse names of no task."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"there is no task '{name}'.{did_you_mean(name, TASKS)} Known: {', '.join(TASKS)}.")


def dataset_domains(config: Any) -> list[str]:
    """Every domain of the data set that a configuration names; none for a data set without domains."""
    kind = registry.dataset_class(config.DATASET.NAME)
    return kind.list_domains(config) if hasattr(kind, "list_domains") else list(getattr(kind, "domains", ()))


def publishes_test(config: Any) -> bool:
    """Whether the data set comes with test images of its own."""
    return bool(getattr(registry.dataset_class(config.DATASET.NAME), "publishes_test", True))


def trains_on_labels(trainer: str) -> bool:
    """Whether labels decide something that a method learns."""
    return bool(getattr(registry.trainer_class(trainer), "trains_on_labels", True))


def extra_tests(trainer: str, name: str) -> tuple[str, ...]:
    """The further tests of a task that a method can take."""
    can = getattr(registry.trainer_class(trainer), "extra_tests", ())
    return tuple(test for test in TASKS[name].extra_tests if test in can)


def _fits_other_classes(trainer: str) -> bool:
    """Whether what a method learns can score other classes than it was trained on."""
    return getattr(registry.trainer_class(trainer), "class_specific", False) is not True


def fits_tasks(trainer: str, names: Sequence[str]) -> bool:
    """Whether every one of the tasks is for this trainer, whatever the data set."""
    return all(
        not (TASKS[name].label_free and trains_on_labels(trainer))
        and not (TASKS[name].transfers and not _fits_other_classes(trainer))
        and not (TASKS[name].needs_tests and not extra_tests(trainer, name))
        and not (TASKS[name].scenario and not is_ours(registry.trainer_class(trainer)))
        for name in names
    )


def check_task(name: str, config: Any, domains: Sequence[str]) -> None:
    """Refuse a task that the data set or the method does not fit.

    Raises:
        UserError: which of the two, and what fits.
    """
    task, trainer, dataset = TASKS[name], config.TRAINER.NAME, config.DATASET.NAME
    if task.across and len(domains) < 2:
        there = f"only {domains[0]}" if domains else "no domains"
        raise UserError(f"{name} leaves one domain out, but {dataset} has {there}; try fewshot or zeroshot")
    if task.needs_domains and len(domains) < 2:
        there = f"only {domains[0]}" if domains else "no domains"
        raise UserError(f"{name} compares the styles of domains, but {dataset} has {there}")
    context_per_class = config.TRAINER.get(trainer.upper(), {}).get("CSC")
    fixed = not _fits_other_classes(trainer) or context_per_class
    if task.transfers and fixed:
        raise UserError(
            f"{name} evaluates on other classes than were trained on; {trainer} learns parts for its own classes "
            f"alone. Take a method such as {', '.join(_ours(_fits_other_classes))}"
        )
    if task.tested_on and len(domains) == 1:
        raise UserError(f"{name} trains on some domains and tests others, but {dataset} has only {domains[0]}")
    if task.label_free and trains_on_labels(trainer):
        free = [known for known in registry.trainer_names() if not trains_on_labels(known)]
        raise UserError(
            f"{name} is for methods that train on no labels, so {trainer}, which does, has no place in it. "
            f"Methods for it: {', '.join(free)}; tasks for {trainer}: fewshot, lodo."
        )
    if task.scenario and (reason := no_scenario(trainer, config, domains)):
        raise UserError(f"{name}: {reason}")
    if task.needs_tests and not extra_tests(trainer, name):
        able = _ours(lambda known: bool(extra_tests(known, name)))
        raise UserError(f"{trainer} has no {name}: that is for {', '.join(able)}")


def no_scenario(trainer: str, config: Any, domains: Sequence[str]) -> str:
    """Why a method cannot be tested on all images of a target in batches, streams or orders; "" if it can."""
    dataset = config.DATASET.NAME
    if not is_ours(registry.trainer_class(trainer)):
        return f"{trainer} is no CLIPTrainer of this project, which alone can be tested so"
    if trains_on_labels(trainer) and len(domains) < 2 and (domains or not publishes_test(config)):
        there = f"has only the domain {domains[0]}" if domains else "comes without test images of its own"
        return (
            f"all images of {dataset} are tested, which {there}, so {trainer} has none to train on; take a method that "
            "trains on no labels"
        )
    return ""


def _ours(fits: Callable[[str], bool]) -> list[str]:
    """The trainers with a configuration file for which something holds."""
    return [name for name in catalogue.trainer_names() if fits(name)]


def targets_of(given: Sequence[str], domains: Sequence[str], dataset: str) -> list[str]:
    """The target domains to run: those given, or all; `[""]` for a data set without domains."""
    if not domains:
        if given:
            raise UserError(f"{dataset} has no domains, so no target can be named: {', '.join(given)}")
        return [""]
    for name in given:
        if name not in domains:
            several = " Separate several by spaces." if "," in name else ""
            near = did_you_mean(name, domains)
            raise UserError(f"{dataset} has no domain '{name}'.{near} Its domains: {', '.join(domains)}.{several}")
    return list(given) or list(domains)


def parted_domains(
    given: Sequence[str], domains: Sequence[str], task: str, dataset: str
) -> tuple[list[str], list[str]]:
    """The domains that a transfer inside a data set trains on, and those that it tests: those given, or all but the
    first.

    Raises:
        UserError: an unknown domain, or none is left to train on.
    """
    targets = targets_of(given or domains[1:], domains, dataset)
    sources = [name for name in domains if name not in targets]
    if not sources:
        raise UserError(
            f"{task} trains on the domains that are no targets, and here all are: leave one out of --targets"
        )
    return sources, targets


def check_tested(given: Sequence[str], task: str, known: Sequence[str]) -> None:
    """Refuse targets that a task with fixed ones does not have."""
    for name in given:
        if not known:
            raise UserError(f"{task} tests base and new classes of one data set, so no target can be named: {name}")
        if name not in known:
            raise UserError(
                f"{task} has no target '{name}'.{did_you_mean(name, known)} Its targets: {', '.join(known)}."
            )
