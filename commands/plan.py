"""A task as a list of runs, each with its folder, its command line and what its folder already holds.

`lodo` leaves one domain out: every domain of the data set is the target once, the others are the sources. `fewshot`
stays inside a domain (or a data set without domains): trained on a few images a class, tested on the held-out part.
`zeroshot` tests every image of each domain and trains on no label; `probe` and `attacks` do the same with few-shot
probes of the features, and with attacked images.

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

from dassl_clip.commands import catalogue, config, train
from dassl_clip.commands.errors import UserError, suggestion
from dassl_clip.modeling.templates import resolve_templates
from dassl_clip.results import records
from dassl_clip.results.tables import Row, refined_row


@dataclass(frozen=True)
class Task:
    """What a task asks of every run.

    Attributes:
        across: the target's fellow domains are the sources; otherwise the target is its own source.
        label_free: for methods that train on no labels; all images are tested.
        evaluate: value of the trainer's key EVALUATE, where it has one.
    """

    across: bool = False
    label_free: bool = False
    evaluate: tuple[str, ...] = ()


TASKS = {
    "fewshot": Task(),
    "lodo": Task(across=True),
    "zeroshot": Task(label_free=True, evaluate=("forms",)),
    "probe": Task(label_free=True, evaluate=("probe",)),
    "attacks": Task(label_free=True, evaluate=("attacks",)),
}
REFINER = "InMaP"  # refines the runs of another method
DEFAULT_SHOTS = 16  # of the few-shot literature
ALL_SHOTS = -1
REFERENCE = "ZeroshotCLIP"
_OWN_KEYS = ("SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NAME", "DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS")
# Keys in which the reference follows the method: what is tested, on which images, with which model and words.
_SHARED_KEYS = ("DATASET.", "INPUT.", "MODEL.BACKBONE.", "TEST.SPLIT", "DATALOADER.NUM_WORKERS", "USE_CUDA")
_SHARED_SETTINGS = ("TEMPLATES", "CTX_INIT", "PREC")
_EVALUATION_SETTINGS = ("NC_", "PROBE_", "ATTACK")  # beginnings of keys


@dataclass(frozen=True)
class Request:
    """What is asked for, apart from the method.

    Attributes:
        dataset: name or yaml file of the data set.
        seeds: seeds to run.
        tasks: names of tasks; empty: the data set's own.
        out: folder above all runs.
        data: folder above the data sets, "" for the config's.
        shots: images a class, None for the task's default.
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
        refines: folder of the run that it refines and that has to be there first, or None.
    """

    folder: Path
    words: tuple[str, ...]
    cfg: Any = field(repr=False, compare=False)
    row: Row
    task: str
    target: str
    seed: int
    refines: Path | None = None

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
    common = _common_words(request, method)
    asked = _resolve(common, method.pairs)
    domains = dataset_domains(asked)
    targets = _targets(request.targets, domains, asked.DATASET.NAME)
    names = task_names(request.tasks, asked)
    for name in names:
        _check_task(name, method.trainer, domains, asked.DATASET.NAME)
    bases = {(run.task, run.target, run.seed): run for run in plan_runs(request, method.base)} if method.base else {}
    return [
        _plan_run(request, method, common, asked, name, target, domains, seed, bases)
        for name in names
        for target in targets
        for seed in request.seeds
    ]


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
    words += _task_pairs(task, method.trainer, asked)
    words += [f"TRAINER.{method.trainer.upper()}.FROM", str(base.folder)] if base is not None else []
    cfg = _resolve(words, ())
    return Run(folder, tuple(words), cfg, row, name, column, seed, base.folder if base is not None else None)


def _task_pairs(task: Task, trainer: str, asked: Any) -> list[str]:
    """The KEY VALUE pairs that a task adds to a run's own."""
    pairs = ["DATASET.PROTOCOL", "all-images"] if task.label_free else []
    if "EVALUATE" in asked.TRAINER.get(trainer.upper(), {}) and task.evaluate:
        pairs += [f"TRAINER.{trainer.upper()}.EVALUATE", repr(task.evaluate)]
    return pairs


def _check_task(name: str, trainer: str, domains: Sequence[str], dataset: str) -> None:
    """Refuse a task that the data set or the method has no use for."""
    from dassl.engine import TRAINER_REGISTRY

    if TASKS[name].across and len(domains) < 2:
        there = f"only {domains[0]}" if domains else "no domains"
        raise UserError(f"{name} leaves one domain out, but {dataset} has {there}; try fewshot or zeroshot")
    if not TASKS[name].label_free:
        return
    if getattr(TRAINER_REGISTRY.get(trainer), "trains_on_labels", True):
        free = [known for known in sorted(TRAINER_REGISTRY.registered_names())
                if not getattr(TRAINER_REGISTRY.get(known), "trains_on_labels", True)]  # fmt: skip
        raise UserError(
            f"{name} tests every image, so {trainer}, which trains on labelled images, has no place in it. "
            f"Methods for it: {', '.join(free)}; tasks for {trainer}: fewshot, lodo."
        )
    evaluate = TASKS[name].evaluate
    if evaluate and evaluate != ("forms",) and trainer == REFINER:
        raise UserError(f"{trainer} has no {name}: that is for ZeroshotCLIP and CLAP")


def reference_method(request: Request, method: Method, trainer: str = REFERENCE, name: str = "") -> Method:
    """The method to compare with: the same images, model, precision and prompt words, as far as it has such keys.

    Args:
        request: what is asked for.
        method: the method that is to be compared.
        trainer: registry name of the reference.
        name: its config; "": the default one.
    """
    train.register()
    asked = _resolve(_common_words(request, method), method.pairs)
    flat, own = records.flatten_config(asked), f"TRAINER.{method.trainer.upper()}."
    given = [key for key, _ in _by_two(method.pairs)]
    wanted = {key: flat[key] for key in (*given, "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.WEIGHTS")
              if key.startswith(_SHARED_KEYS)}  # fmt: skip
    words = {key: flat[f"{own}{key}"] for key in _SHARED_SETTINGS if flat.get(f"{own}{key}")}
    words |= {
        key.removeprefix(own): value
        for key, value in flat.items()
        if key.startswith(tuple(f"{own}{start}" for start in _EVALUATION_SETTINGS))
    }
    if "CTX_INIT" in words:
        words.setdefault("TEMPLATES", "words")
    wanted |= {f"TRAINER.{trainer.upper()}.{key}": value for key, value in words.items()}
    plain = records.flatten_config(_resolve(_common_words(request, Method(trainer, name)), ()))
    changed = {key: value for key, value in wanted.items() if key in plain and plain[key] != value}
    prompt = [f"TRAINER.{trainer.upper()}.{key}" for key in ("TEMPLATES", "CTX_INIT")]
    if _templates(plain, prompt, asked.DATASET.NAME) == _templates(plain | changed, prompt, asked.DATASET.NAME):
        changed = {key: value for key, value in changed.items() if key not in prompt}
    pairs = [word for key, value in changed.items() for word in (key, value if isinstance(value, str) else repr(value))]
    return Method(trainer, name, tuple(pairs))


def _templates(flat: dict[str, Any], keys: Sequence[str], dataset: str) -> list[str] | None:
    """The sentences of a trainer's prompt, or None if it has no such keys."""
    if not all(key in flat for key in keys):
        return None
    return resolve_templates(flat[keys[0]], dataset, words=flat[keys[1]])


def _common_words(request: Request, method: Method) -> list[str]:
    """The arguments of train.py that all runs of a method share, without its pairs."""
    dataset = catalogue.dataset_file(request.dataset)
    file = catalogue.trainer_file(method.trainer, method.config, dataset.stem)
    words = ["--trainer", method.trainer, "--dataset-config-file", _shown(dataset), "--config-file", _shown(file)]
    words += ["--root", request.data] if request.data else []
    for name in request.imports:
        words += ["--import", name]
    return words


def dataset_domains(cfg: Any) -> list[str]:
    """Every domain of the data set that a configuration names; none for a data set without domains."""
    from dassl.data.datasets import DATASET_REGISTRY

    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    return dataset.list_domains(cfg) if hasattr(dataset, "list_domains") else list(getattr(dataset, "domains", ()))


def with_tasks(request: Request, method: Method) -> Request:
    """The request with its tasks spelled out, as `method` would have them."""
    train.register()
    asked = _resolve(_common_words(request, method), method.pairs)
    return replace(request, tasks=tuple(task_names(request.tasks, asked)))


def task_names(asked: Sequence[str], cfg: Any) -> list[str]:
    """The tasks to run: those asked for, or the method's own, or the data set's, or leave-one-domain-out.

    Raises:
        UserError: an unknown task.
    """
    own = cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}).get("TASKS", ())
    tasks = list(asked) or list(own) or list(cfg.DATASET.get("TASKS", ())) or ["lodo"]
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'.{suggestion(task, TASKS)} Known: {', '.join(TASKS)}.")
    return tasks


def _targets(asked: Sequence[str], domains: Sequence[str], dataset: str) -> list[str]:
    if not domains:
        if asked:
            raise UserError(f"{dataset} has no domains, so no target can be named: {', '.join(asked)}")
        return [""]
    for name in asked:
        if name not in domains:
            raise UserError(
                f"{dataset} has no domain '{name}'.{suggestion(name, domains)} Its domains: {', '.join(domains)}."
            )
    return list(asked) or list(domains)


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


def _resolve(words: Sequence[str], pairs: Sequence[str]) -> Any:
    return _resolve_words((*words, *pairs))


def _check_pairs(pairs: Sequence[str]) -> None:
    for key, value in _by_two(pairs):
        if key in _OWN_KEYS:
            raise UserError(f"{key} {value}: a task sets {key} itself; use its arguments (seed, --out, --targets, ...)")


def _by_two(pairs: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(pairs[::2], pairs[1::2]))


def _without(pairs: Sequence[str], key: str) -> list[str]:
    return [word for name, value in _by_two(pairs) if name != key for word in (name, value)]
