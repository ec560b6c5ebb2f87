"""What a search will cost, printed before it starts: runs, steps, hours, memory and disk, from ten timed steps.

Of each data set the run with the largest batch is begun in a folder of its own: ten steps and an evaluation that are
not counted (the first ones are slower), then ten steps and an evaluation that are timed. The time of a step is taken to
grow with the number of images in it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dassl_clip.engine.overrides import resolve_config
from dassl_clip.results import records

from .plan import Run, own_settings

TIMED = 10  # steps


@dataclass(frozen=True)
class Measured:
    """What the timed steps of a data set took.

    Attributes:
        step: seconds of a step.
        images: of each source domain in it.
        evaluation: seconds of one evaluation on the source validation images.
        memory: peak, in MB.
        disk: what the run left in its folder, in MB.
    """

    step: float
    images: int
    evaluation: float
    memory: float
    disk: float


def steps_of(run: Run) -> int:
    """The number of steps of a run; 0 where it goes by passes over images that are not listed yet."""
    return int(own_settings(run.config).STEPS)


def evaluations_of(run: Run) -> int:
    """The number of evaluations of a run."""
    node = own_settings(run.config)
    every = node.EVALUATE_EVERY or node.STEPS
    done: int = math.ceil((node.STEPS - 1) / every) + 1 if node.EVALUATE_FIRST else math.ceil(node.STEPS / every)
    return done


def plan_line(runs: Sequence[Run]) -> str:
    """`search: 240 runs, 1,200,240 steps, 4,320 evaluations`."""
    steps, evaluations = sum(map(steps_of, runs)), sum(map(evaluations_of, runs))
    return f"search: {_count(len(runs), 'run')}, {_count(steps, 'step')}, {_count(evaluations, 'evaluation')}"


def seconds_of(run: Run, measured: Measured) -> float:
    """How long a run takes, by the timed steps of its data set."""
    share = float(own_settings(run.config).PER_DOMAIN) / measured.images
    return steps_of(run) * measured.step * share + evaluations_of(run) * measured.evaluation


def price_lines(runs: Sequence[Run], measured: dict[str, Measured]) -> list[str]:
    """The price of each data set's runs, and of all, one after another on this machine."""
    lines, total, disk = [], 0.0, 0.0
    for name, own in _by_dataset(runs).items():
        cost, seconds = measured[name], sum(seconds_of(run, measured[name]) for run in own)
        total, disk = total + seconds, disk + len(own) * cost.disk
        lines.append(
            f"price: {name}: {_count(len(own), 'run')}, {_count(sum(map(steps_of, own)), 'step')}: {_hours(seconds)}; "
            f"timed: {cost.step:.3g} s a step of {cost.images} images a source domain, {cost.evaluation:.3g} s an "
            f"evaluation; memory {cost.memory / 1024:.1f} GB, disk {cost.disk / 1024:.2f} GB a run"
        )
    return [*lines, f"price: in all {_count(len(runs), 'run')}, one after another {_hours(total)}; "
                    f"disk {disk / 1024:.1f} GB"]  # fmt: skip


def measure(runs: Sequence[Run], folder: Path, make: Callable[[Sequence[Run]], Any]) -> dict[str, Measured]:
    """Time ten steps of each data set's largest batch; a data set whose run fails is left out.

    Args:
        runs: of searches.
        folder: for the timed runs.
        make: makes some runs, one at a time.
    """
    probes = {}
    for name, own in _by_dataset(runs).items():
        largest = max(own, key=lambda run: int(own_settings(run.config).PER_DOMAIN))
        probes[name] = timed_run(largest, folder / name)
    make(list(probes.values()))
    found = {}
    for name, probe in probes.items():
        if (record := records.read_record(probe.folder)) is not None:
            found[name] = _measured(record, probe)
    return found


def timed_run(run: Run, folder: Path) -> Run:
    """A run of twice as many steps as are timed, with an evaluation after each half."""
    node = f"TRAINER.{run.config.TRAINER.NAME.upper()}"
    flags = tuple((key, str(folder) if key == "OUTPUT_DIR" else value) for key, value in run.overrides.flags)
    pairs = ((f"{node}.STEPS", str(2 * TIMED)), (f"{node}.EVALUATE_EVERY", str(TIMED)),
             (f"{node}.EVALUATE_FIRST", "False"))  # fmt: skip
    overrides = replace(run.overrides, flags=flags, pairs=(*run.overrides.pairs, *pairs))
    return replace(run, folder=folder, overrides=overrides, config=resolve_config(overrides), needs=None)


def _measured(record: dict[str, Any], probe: Run) -> Measured:
    before, after = record["evaluated_at"]
    disk = sum(path.stat().st_size for path in probe.folder.rglob("*") if path.is_file())
    return Measured(
        step=(after["train"] - before["train"]) / TIMED,
        images=int(own_settings(probe.config).PER_DOMAIN),
        evaluation=after["test"] - before["test"],
        memory=float(record["peak_memory_mb"]),
        disk=disk / 2**20,
    )


def _by_dataset(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.config.DATASET.NAME, []).append(run)
    return found


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
