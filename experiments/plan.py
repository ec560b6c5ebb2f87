"""A task (`tasks.py`) as a list of runs, each with its folder and its command line.

Run folder: `OUT/<task>/<dataset>/<trainer>/<config>/shots<n>/<target or class subset>/seed<s>`, where `<config>` is the
stem of the config file, with `+KEY=VALUE` for each key that was changed on the command line. A method that refines the
runs of another has `<config>-from-<its trainer>-<its config>` there.
"""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dassl_clip.cli import train
from dassl_clip.engine import catalogue, config
from dassl_clip.results.errors import UserError
from dassl_clip.results.tables import Row, refined_row

from .tasks import TASKS, Task, check_task, check_tested, dataset_domains, has_readings, targets_of, task_names

DEFAULT_SHOTS = 16  # of the few-shot literature
ALL_SHOTS = -1
_OWN_KEYS = ("SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NAME", "DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS")


@dataclass(frozen=True)
class Request:
    """What is asked for, apart from the method.

    Attributes:
        dataset: name or yaml file of the data set.
        seeds: seeds to run.
        tasks: names of tasks; empty: the data set's own.
        out: folder above all runs.
        data: folder above the data sets, "" for the config's.
        shots: images per class, None for the task's default.
        targets: target domains to run; empty: all.
        imports: modules or files with trainers or data sets of the user's own.
    """

    dataset: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    out: str = "output"
    data: str = ""
    shots: int | None = None
    targets: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A trainer in one configuration.

    Attributes:
        trainer: registry name.
        config: config name or file, "" for the default.
        pairs: KEY VALUE pairs, flat.
        base: the method whose runs it refines, or None.
    """

    trainer: str
    config: str = ""
    pairs: tuple[str, ...] = ()
    base: Method | None = None


@dataclass(frozen=True)
class Run:
    """One run of the plan.

    Attributes:
        folder: its run folder.
        words: arguments of `train.py`.
        cfg: the resolved configuration.
        row: its row in a table.
        target: its column in a table.
        needs: folder of the run that it refines or evaluates and that has to be there first, or None.
        twins: folders in which the same run lies if another task has made it.
    """

    folder: Path
    words: tuple[str, ...]
    cfg: Any = field(repr=False, compare=False)
    row: Row
    task: str
    target: str
    seed: int
    needs: Path | None = None
    twins: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """`GOPro (icons) lodo emoji seed 1`."""
        return f"{self.row.label} {self.task} {self.target} seed {self.seed}"

    @property
    def label(self) -> str:
        """`GOPro emoji`, for where there is little room."""
        return f"{self.row.method} {self.target}"

    @property
    def command(self) -> str:
        """The same run as a line to paste into a shell."""
        return shlex.join([*train_program(), *self.words])


def train_program() -> list[str]:
    """The words that start one run: the checkout's train.py, or the command of an installed wheel."""
    script = Path(train.__file__).resolve().parents[1] / "train.py"
    return ["python", _shown(script)] if script.is_file() else ["dassl-clip", "train"]


def _shown(path: Path) -> str:
    """A path relative to the working directory where it lies below it, otherwise absolute."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def plan_runs(request: Request, method: Method) -> list[Run]:
    """All runs of one method, task after task, target after target, seed after seed.

    Raises:
        UserError: an unknown method, data set, task, target or config key, or a task that the method or the data set
            has no use for.
    """
    _check_pairs(method.pairs)
    common = common_words(request, method)
    asked = resolve(common, method.pairs)
    domains = dataset_domains(asked)
    names = with_tasks(request, method).tasks
    for name in names:
        check_task(name, asked, domains)
    bases = {(run.task, run.target, run.seed): run for run in plan_runs(request, method.base)} if method.base else {}
    runs = []
    for name in names:
        if TASKS[name].transfers:
            runs += [run for seed in request.seeds for run in transfer_runs(request, method, asked, name, seed)]
            continue
        for target in targets_of(request.targets, domains, asked.DATASET.NAME):
            runs += [
                _plan_run(request, method, common, asked, name, target, domains, seed, bases) for seed in request.seeds
            ]
    return runs


def transfer_runs(request: Request, method: Method, asked: Any, name: str, seed: int) -> list[Run]:
    """The run that is trained, then those that evaluate it on new classes or other data sets.

    Args:
        request: what is asked for.
        method: the method.
        asked: its resolved configuration on the data set that it is trained on.
        name: the task.
        seed: the seed.
    """
    task, stem = TASKS[name], catalogue.dataset_file(request.dataset).stem
    shots, row = _shots(request.shots, asked), Row(method.trainer, asked.RUN.CONFIG)
    below = (stem, method.trainer, asked.RUN.CONFIG, f"shots{shots}")
    above = Path(request.out, name, *below)
    pairs = [*_without(method.pairs, "DATASET.NUM_SHOTS"), "DATASET.NUM_SHOTS", str(shots)]
    check_tested(request.targets, name, task.tested_on)
    trained = above / ("base" if task.new_classes else asked.DATASET.NAME) / f"seed{seed}"
    own = request.dataset
    places = [(own, "base"), (own, "new")] if task.new_classes else [(own, "")]
    places += [(other, "") for other in task.tested_on if not request.targets or other in request.targets]
    config = str(catalogue.trainer_file(method.trainer, method.config, stem))
    others = [other for other in TASKS if task.tested_on and TASKS[other].tested_on and other != name]
    runs = []
    for dataset, subset in places:
        words = common_words(replace(request, dataset=dataset), replace(method, config=config))
        facts = [*pairs, "RUN.SOURCE", asked.DATASET.NAME, *(["DATASET.SUBSAMPLE_CLASSES", subset] if subset else [])]
        column = subset or resolve(words, ()).DATASET.NAME
        folder = above / column / f"seed{seed}"
        words += ["--task", name, "--seed", str(seed), "--output-dir", str(folder)]
        words += ["--eval-only", "--model-dir", str(trained)] if runs else []
        words = [*words, *facts]
        twins = () if runs else tuple(Path(request.out, other, *below, column, f"seed{seed}") for other in others)
        needs = trained if runs else None
        runs.append(Run(folder, tuple(words), resolve(words, ()), row, name, column, seed, needs, twins))
    return runs


def _plan_run(
    request: Request,
    method: Method,
    common: Sequence[str],
    asked: Any,
    name: str,
    target: str,
    domains: Sequence[str],
    seed: int,
    bases: dict[tuple[str, str, int], Run],
) -> Run:
    """One run: task `name` on domain `target` ("" for a data set without domains); `bases`: the runs to refine."""
    task, config_name = TASKS[name], asked.RUN.CONFIG
    shots = ALL_SHOTS if task.label_free else _shots(request.shots, asked)
    subset = asked.DATASET.get("SUBSAMPLE_CLASSES", "all")
    column = "-".join(filter(None, (target, subset if subset != "all" or not target else "")))
    words, row, base = list(common), Row(method.trainer, config_name), bases.get((name, column, seed))
    folder_name = config_name
    if base is not None:
        row = refined_row(method.trainer, config_name, base.row.method, base.row.config)
        folder_name = f"{config_name}-from-{base.row.method}-{base.row.config}"
    stem = catalogue.dataset_file(request.dataset).stem
    folder = Path(request.out, name, stem, method.trainer, folder_name, f"shots{shots}", column, f"seed{seed}")
    if target:
        sources = [domain for domain in domains if domain != target] if task.across else [target]
        words += ["--source-domains", *sources, "--target-domains", target]
    words += ["--task", name, "--seed", str(seed), "--output-dir", str(folder)]
    words += _without(method.pairs, "DATASET.NUM_SHOTS")
    words += ["DATASET.NUM_SHOTS", str(shots)]
    words += _task_pairs(task, target, asked)
    words += [f"TRAINER.{method.trainer.upper()}.FROM", str(base.folder)] if base is not None else []
    cfg = resolve(words, ())
    return Run(folder, tuple(words), cfg, row, name, column, seed, base.folder if base is not None else None)


def _task_pairs(task: Task, target: str, asked: Any) -> list[str]:
    """The KEY VALUE pairs that a task adds to a run's own.

    Of a data set without domains (`target` "") that publishes test images, these alone are tested, as in the papers.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    publishes = getattr(DATASET_REGISTRY.get(asked.DATASET.NAME), "publishes_test", True)
    pairs = ["DATASET.PROTOCOL", "all-images"] if task.label_free and (target or not publishes) else []
    if task.evaluate and has_readings(asked):
        pairs += [f"TRAINER.{asked.TRAINER.NAME.upper()}.EVALUATE", repr(task.evaluate)]
    return pairs


def common_words(request: Request, method: Method) -> list[str]:
    """The arguments of train.py that all runs of a method share, without its pairs."""
    dataset = catalogue.dataset_file(request.dataset)
    file = catalogue.trainer_file(method.trainer, method.config, dataset.stem)
    words = ["--trainer", method.trainer, "--dataset-config-file", _shown(dataset), "--config-file", _shown(file)]
    words += ["--root", request.data] if request.data else []
    for name in request.imports:
        words += ["--import", name]
    return words


def with_tasks(request: Request, method: Method) -> Request:
    """The request with its tasks spelled out, as `method` would have them; of a refining one, as its base would."""
    train.register()
    lead = method.base or method
    asked = resolve(common_words(request, lead), lead.pairs)
    return replace(request, tasks=tuple(task_names(request.tasks, asked)))


def _shots(asked: int | None, cfg: Any) -> int:
    if asked is not None:
        return asked if asked >= 1 else ALL_SHOTS
    if cfg.DATASET.NUM_SHOTS >= 1:
        return cfg.DATASET.NUM_SHOTS
    return DEFAULT_SHOTS


@functools.lru_cache(maxsize=4096)
def _resolve_words(words: tuple[str, ...]) -> Any:
    args, pairs = train.parse(words)
    return config.resolve_config(args, pairs)


def resolve(words: Sequence[str], pairs: Sequence[str]) -> Any:
    return _resolve_words((*words, *pairs))


def _check_pairs(pairs: Sequence[str]) -> None:
    for key, value in by_two(pairs):
        if key in _OWN_KEYS:
            raise UserError(f"{key} {value}: a task sets {key} itself; use its arguments (seed, --out, --targets, ...)")


def by_two(pairs: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(pairs[::2], pairs[1::2]))


def _without(pairs: Sequence[str], key: str) -> list[str]:
    return [word for name, value in by_two(pairs) if name != key for word in (name, value)]
