"""The tasks: what each asks of every run, and which methods and data sets have a place in it.

`lodo` leaves one domain out: every domain of the data set is the target once, the others are the sources. `fewshot`
stays inside a domain (or a data set without domains): trained on a few images per class, tested on the held-out part.
`zeroshot` tests every image of each domain (without domains: the published test images, or every image of your own
folders and lists) and trains on no label; `probe` and `attacks` do the same with few-shot probes of the features, and
with attacked images. `b2n` trains on the base classes of a data set and evaluates base and new ones; `xd` and `dg`
train on a data set (the papers': ImageNet) and evaluate on ten others, or on its variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dassl_clip.results.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Task:
    """What a task asks of every run.

    Attributes:
        across: the target's fellow domains are the sources; otherwise the target is its own source.
        label_free: for methods that train on no labels; all images of a domain are tested.
        evaluate: value of the trainer's key EVALUATE, where it has one.
        tested_on: data sets on which the trained run is evaluated too (`transfer_runs`).
        new_classes: train on the base classes, evaluate on the new ones too (`transfer_runs`).
    """

    across: bool = False
    label_free: bool = False
    evaluate: tuple[str, ...] = ()
    tested_on: tuple[str, ...] = ()
    new_classes: bool = False

    @property
    def transfers(self) -> bool:
        """Whether one run is trained and others evaluate it."""
        return bool(self.tested_on) or self.new_classes


TASKS = {
    "fewshot": Task(),
    "lodo": Task(across=True),
    "zeroshot": Task(label_free=True, evaluate=("forms",)),
    "probe": Task(label_free=True, evaluate=("probe",)),
    "attacks": Task(label_free=True, evaluate=("attacks",)),
    "b2n": Task(new_classes=True),
    "xd": Task(
        tested_on=(
            "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
            "eurosat", "ucf101",
        )
    ),
    "dg": Task(tested_on=("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")),
}  # fmt: skip
REFINER = "InMaP"  # refines the runs of another method


def task_names(asked: Sequence[str], cfg: Any) -> list[str]:
    """The tasks to run: those asked for, or the method's own, or the data set's, or lodo (fewshot without domains).

    Raises:
        UserError: an unknown task.
    """
    own = cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}).get("TASKS", ())
    usual = "lodo" if dataset_domains(cfg) else "fewshot"
    tasks = list(asked) or list(own) or list(cfg.DATASET.get("TASKS", ())) or [usual]
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'.{did_you_mean(task, TASKS)} Known: {', '.join(TASKS)}.")
    return tasks


def dataset_domains(cfg: Any) -> list[str]:
    """Every domain of the data set that a configuration names; none for a data set without domains."""
    from dassl.data.datasets import DATASET_REGISTRY

    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    return dataset.list_domains(cfg) if hasattr(dataset, "list_domains") else list(getattr(dataset, "domains", ()))


def has_place(trainer: str, tasks: Sequence[str]) -> bool:
    """Whether every one of the tasks is for this trainer, whatever the data set."""
    from dassl.engine import TRAINER_REGISTRY

    kind = TRAINER_REGISTRY.get(trainer)
    free, specific = not getattr(kind, "trains_on_labels", True), getattr(kind, "class_specific", False) is True
    fits = {
        name: (free or not task.label_free)
        and not (task.transfers and specific)
        and not (trainer == REFINER and task.evaluate and task.evaluate != ("forms",))
        for name, task in TASKS.items()
    }
    return all(fits[name] for name in tasks)


def check_task(name: str, asked: Any, domains: Sequence[str]) -> None:
    """Refuse a task that the data set or the method has no use for."""
    from dassl.engine import TRAINER_REGISTRY

    trainer, dataset = asked.TRAINER.NAME, asked.DATASET.NAME
    if TASKS[name].across and len(domains) < 2:
        there = f"only {domains[0]}" if domains else "no domains"
        raise UserError(f"{name} leaves one domain out, but {dataset} has {there}; try fewshot or zeroshot")
    trainer_class = TRAINER_REGISTRY.get(trainer)
    fixed = getattr(trainer_class, "class_specific", False) is True or asked.TRAINER.get(trainer.upper(), {}).get("CSC")
    if TASKS[name].transfers and (domains or fixed):
        why = "is a data set of domains" if domains else "learns parts for its own classes alone"
        raise UserError(
            f"{name} evaluates on other classes than were trained on; {dataset if domains else trainer} {why}. "
            "Take a data set without domains, and a method such as CoOp, GOPro or ZeroshotCLIP"
        )
    if not TASKS[name].label_free:
        return
    if getattr(TRAINER_REGISTRY.get(trainer), "trains_on_labels", True):
        free = [known for known in sorted(TRAINER_REGISTRY.registered_names())
                if not getattr(TRAINER_REGISTRY.get(known), "trains_on_labels", True)]  # fmt: skip
        raise UserError(
            f"{name} is for methods that train on no labels, so {trainer}, which does, has no place in it. "
            f"Methods for it: {', '.join(free)}; tasks for {trainer}: fewshot, lodo."
        )
    if name in ("probe", "attacks") and not has_readings(asked):
        raise UserError(f"{trainer} has no {name}: that is for ZeroshotCLIP and CLAP")


def has_readings(asked: Any) -> bool:
    """Whether a method can take further readings of the tested images."""
    return "EVALUATE" in asked.TRAINER.get(asked.TRAINER.NAME.upper(), {})


def targets_of(asked: Sequence[str], domains: Sequence[str], dataset: str) -> list[str]:
    if not domains:
        if asked:
            raise UserError(f"{dataset} has no domains, so no target can be named: {', '.join(asked)}")
        return [""]
    for name in asked:
        if name not in domains:
            raise UserError(
                f"{dataset} has no domain '{name}'.{did_you_mean(name, domains)} Its domains: {', '.join(domains)}."
            )
    return list(asked) or list(domains)


def check_tested(asked: Sequence[str], task: str, known: Sequence[str]) -> None:
    """Refuse targets that a task with fixed ones does not have."""
    for name in asked:
        if not known:
            raise UserError(f"{task} tests base and new classes of one data set, so no target can be named: {name}")
        if name not in known:
            raise UserError(
                f"{task} has no target '{name}'.{did_you_mean(name, known)} Its targets: {', '.join(known)}."
            )
