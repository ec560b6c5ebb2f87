"""A task (`tasks.py`) as a list of runs, each with its folder and its resolved configuration.

Run folder: `OUT/<task>/<dataset>/<trainer>/<config>/shots<n>/<target or class subset>/seed<s>`, where `<config>` is the
stem of the config file, with `+KEY=VALUE` for each key that was changed on the command line. A method that refines the
runs of another has `<config>-from-<its trainer>-<its config>` there.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dassl_clip.engine import catalogue
from dassl_clip.engine.config import KEYS
from dassl_clip.engine.overrides import Overrides, Pairs, resolve_config
from dassl_clip.engine.paths import ROOT
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import Row, refined_row
from dassl_clip.results.protocols import DOMAINBED, part_name

from . import tasks
from .methods import Method
from .tasks import TASKS

DEFAULT_SHOTS = 16  # of the few-shot literature
ALL_SHOTS = -1
ALL_CLASSES = "all"


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
        beside: domains that every run leaves out of its sources too, and tests with its target.
        imports: modules or files with trainers or data sets of the user's own.
    """

    dataset: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    out: str = "output"
    data: str = ""
    shots: int | None = None
    targets: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def overrides(self, method: Method) -> Overrides:
        """What every run of a method asks for."""
        return method.overrides(self.dataset, self.data, self.imports)


@dataclass(frozen=True)
class Run:
    """One run of the plan.

    Attributes:
        folder: its run folder.
        overrides: what it asks for on top of the defaults.
        config: the configuration that this amounts to.
        row: its row in a table.
        task: name of its task.
        target: its column in a table.
        seed: its seed.
        needs: folder of the run that it refines or evaluates and that has to be there first, or None.
        evaluates: it trains nothing and evaluates that run.
        twins: folders in which the same run lies if another task has made it.
    """

    folder: Path
    overrides: Overrides
    config: Any = field(repr=False, compare=False)
    row: Row
    task: str
    target: str
    seed: int
    needs: Path | None = None
    evaluates: bool = False
    twins: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """`Method (icons) lodo emoji seed 1`."""
        return f"{self.row.label} {self.task} {self.target} seed {self.seed}"

    @property
    def dataset(self) -> str:
        """The data set as a command names it: `office_home`."""
        return Path(self.overrides.dataset_file).stem

    @property
    def words(self) -> list[str]:
        """The arguments of `train.py` that make the same run."""
        evaluation = ["--eval-only", "--model-dir", str(self.needs)] if self.evaluates else []
        return [*self.overrides.flag_words(), *evaluation, *(word for pair in self.overrides.pairs for word in pair)]

    @property
    def command(self) -> str:
        """The same run as a line to paste into a shell."""
        return shlex.join([*train_program(), *self.words])


def train_program() -> list[str]:
    """The words that start one run: the checkout's train.py, or the command of an installed wheel."""
    script = ROOT / "train.py"
    return ["python", catalogue.shown(script)] if script.is_file() else ["dassl-clip", "train"]


def with_tasks(request: Request, method: Method) -> Request:
    """The request with its tasks spelled out, as `method` would have them; of a refining one, as its base would."""
    config = resolve_config(request.overrides(method.base or method))  # refuses unknown names before torch is imported
    return replace(request, tasks=tuple(tasks.task_names(request.tasks, config)))


def plan_runs(request: Request, method: Method) -> list[Run]:
    """All runs of one method, task after task, target after target, seed after seed.

    Raises:
        UserError: an unknown method, data set, task, target or config key, or a task that the method or the data set
            does not fit.
    """
    for key, value in method.pairs:
        if key in KEYS and KEYS[key].by_task:
            raise UserError(f"{key} {value}: a task sets {key} itself; use its arguments (seed, --out, --targets, ...)")
    common = request.overrides(method)
    config = resolve_config(common)
    domains = tasks.dataset_domains(config)
    names = with_tasks(request, method).tasks
    for name in names:
        tasks.check_task(name, config, domains)
    bases = {(run.task, run.target, run.seed): run for run in plan_runs(request, method.base)} if method.base else {}
    runs = []
    for name in names:
        asked = common
        if scenario := TASKS[name].scenario:  # with its keys, which the name of the configuration tells
            asked = replace(common, pairs=(*common.pairs, ("SCENARIOS.TASK", scenario)))
        config = resolve_config(asked)
        if TASKS[name].transfers:
            runs += [
                run for seed in request.seeds for run in _transfer_runs(request, method, config, name, domains, seed)
            ]
            continue
        for target in tasks.targets_of(request.targets, domains, config.DATASET.NAME):
            for seed in request.seeds:
                base = bases.get((name, target_column(config, target), seed))
                runs.append(_run_on(request, asked, config, name, target, domains, seed, base))
    return runs


def target_column(config: Any, target: str) -> str:
    """What a run is tested on, for its folder and its column: the target domain, a subset of the classes, or both."""
    subset = config.DATASET.get("SUBSAMPLE_CLASSES", "all")
    return "-".join(filter(None, (target, subset if subset != "all" or not target else "")))


def has_place(request: Request, method: Method) -> bool:
    """Whether the data set has what a method needs for those of the tasks that test batches, streams or orders."""
    config = resolve_config(request.overrides(method))
    domains = tasks.dataset_domains(config)
    names = [name for name in request.tasks if TASKS[name].scenario]
    fits = not names or not tasks.no_scenario(config.TRAINER.NAME, config, domains)
    return fits and (method.base is None or has_place(request, method.base))


def _run_on(
    request: Request,
    common: Overrides,
    config: Any,
    name: str,
    target: str,
    domains: Sequence[str],
    seed: int,
    base: Run | None,
) -> Run:
    """One run: task `name` on domain `target` ("" for a data set without domains); `base`: the run to refine."""
    task, trainer, named = TASKS[name], config.TRAINER.NAME, config.RUN.CONFIG
    left = tuple(domain for domain in domains if domain == target or domain in request.beside)
    node, column = f"TRAINER.{trainer.upper()}", target_column(config, "+".join(left) if target else "")
    # Of a data set without domains that publishes test images, these alone are tested, as in the papers.
    whole = bool((task.label_free or task.scenario) and (target or not tasks.publishes_test(config)))
    across = task.across or bool(task.scenario and len(domains) > 1)
    shots = ALL_SHOTS if task.label_free or (whole and not across) else _shots(request.shots, config)
    row, below = Row(trainer, named), named
    if base is not None:
        row = refined_row(trainer, named, base.row.method, base.row.config)
        below = f"{named}-from-{base.row.method}-{base.row.config}"
    stem = catalogue.dataset_file(request.dataset).stem
    folder = Path(request.out, name, stem, trainer, below, f"shots{shots}", column, f"seed{seed}")
    flags = list(common.flags)
    if target:
        sources = tuple(domain for domain in domains if domain not in left) if across else (target,)
        flags += [("DATASET.SOURCE_DOMAINS", sources), ("DATASET.TARGET_DOMAINS", left)]
    flags += [("RUN.TASK", name), ("SEED", seed), ("OUTPUT_DIR", str(folder))]
    pairs = [*_without_shots(common.pairs), ("DATASET.NUM_SHOTS", str(shots))]
    pairs += [("DATASET.PROTOCOL", "all-images")] if whole else []
    if config.DATASET.get("PROTOCOL") == DOMAINBED and not whole and "DATASET.TRIAL" not in dict(pairs):
        pairs += [("DATASET.TRIAL", str(seed))]  # whose repetitions are trials, each with a split of its own
    if further := tasks.extra_tests(trainer, name):
        pairs += [(f"{node}.EVALUATE", repr(further))]
    if base is not None:
        pairs += [(f"{node}.FROM", str(base.folder))]
    overrides = replace(common, flags=tuple(flags), pairs=tuple(pairs))
    needs = base.folder if base is not None else None
    return Run(folder, overrides, resolve_config(overrides), row, name, column, seed, needs)


def _transfer_runs(
    request: Request, method: Method, config: Any, name: str, domains: Sequence[str], seed: int
) -> list[Run]:
    """The run that is trained by `config`, then those that evaluate it on new classes, other domains or data sets."""
    task, stem = TASKS[name], catalogue.dataset_file(request.dataset).stem
    shots, row = _shots(request.shots, config), Row(method.trainer, config.RUN.CONFIG)
    below = (stem, method.trainer, config.RUN.CONFIG, f"shots{shots}")
    above = Path(request.out, name, *below)
    tested = _tested_parts(request, config, name, domains)
    first = tested[0]
    source = first.name(config.DATASET.NAME) if task.tested_on else config.DATASET.NAME
    # On the other data sets the method keeps the config that it was trained with.
    method = replace(method, config=str(catalogue.trainer_file(method.trainer, method.config, stem)))
    others = [other for other in TASKS if task.tested_on and TASKS[other].tested_on and other != name and not domains]
    runs: list[Run] = []
    for part in tested:
        common = replace(request, dataset=part.dataset).overrides(method)
        dataset = resolve_config(replace(common, pairs=())).DATASET.NAME
        column = part.name(dataset) if task.tested_on else part.subset
        place = part.folder or dataset
        flags = [*common.flags, ("RUN.TASK", name), ("SEED", seed)]
        flags += [("OUTPUT_DIR", str(above / place / f"seed{seed}"))]
        flags += (
            [("DATASET.SOURCE_DOMAINS", first.targets), ("DATASET.TARGET_DOMAINS", part.targets)] if domains else []
        )
        pairs = [*_without_shots(method.pairs), ("DATASET.NUM_SHOTS", str(shots)), ("RUN.SOURCE", source)]
        pairs += [("DATASET.SUBSAMPLE_CLASSES", part.subset)] if part.subset != ALL_CLASSES else []
        overrides = replace(common, flags=tuple(flags), pairs=tuple(pairs))
        run = Run(above / place / f"seed{seed}", overrides, resolve_config(overrides), row, name, column, seed)
        if runs:  # the first is the one that is trained
            run = replace(run, needs=runs[0].folder, evaluates=True)
        else:
            run = replace(run, twins=tuple(Path(request.out, other, *below, place, f"seed{seed}") for other in others))
        runs.append(run)
    return runs


@dataclass(frozen=True)
class _Part:
    """What one run of a transfer tests: a data set, some of its domains, a subset of its classes, and its folder."""

    dataset: str
    targets: tuple[str, ...] = ()
    subset: str = ALL_CLASSES
    folder: str = ""

    def name(self, dataset: str) -> str:
        """The column, and the name of a source."""
        return part_name(dataset, self.targets, self.subset)


def _tested_parts(request: Request, config: Any, name: str, domains: Sequence[str]) -> list[_Part]:
    """What a transfer tests; first what it trains on."""
    task, dataset = TASKS[name], request.dataset
    if not task.tested_on:
        tasks.check_tested(request.targets, name, ())
        return [_Part(dataset, tuple(domains), subset, subset) for subset in ("base", "new")]
    if not domains:
        tasks.check_tested(request.targets, name, task.tested_on)
        others = (other for other in task.tested_on if not request.targets or other in request.targets)
        return [_Part(dataset), *map(_Part, others)]
    sources, targets = tasks.parted_domains(request.targets, domains, name, config.DATASET.NAME)
    base, new = ("base", "new") if task.new_classes else (ALL_CLASSES, ALL_CLASSES)
    trained = "+".join(sources) + ("-base" if task.new_classes else "")
    tested = [(domain, f"{trained}-to-{domain}" + ("-new" if task.new_classes else "")) for domain in targets]
    first = _Part(dataset, tuple(sources), base, trained)
    return [first, *(_Part(dataset, (domain,), new, folder) for domain, folder in tested)]


def _shots(given: int | None, config: Any) -> int:
    if given is not None:
        return given if given >= 1 else ALL_SHOTS
    usual = ALL_SHOTS if config.DATASET.get("PROTOCOL") == DOMAINBED else DEFAULT_SHOTS
    return config.DATASET.NUM_SHOTS if config.DATASET.NUM_SHOTS >= 1 else usual


def own_settings(config: Any) -> Any:
    """The settings of a configuration's own method, `TRAINER.<NAME>`; empty for a trainer that has none."""
    return config.TRAINER.get(config.TRAINER.NAME.upper(), {})


def _without_shots(pairs: Pairs) -> Pairs:
    return tuple(pair for pair in pairs if pair[0] != "DATASET.NUM_SHOTS")
