"""A task as a list of runs, each with its folder, its command line and what its folder already holds.

`lodo` leaves one domain out: every domain of the data set is the target once, the others are the sources. `fewshot`
stays inside a domain: every domain is source and target, trained on a few images a class, tested on its held-out part.

Run folder: `OUT/<task>/<dataset>/<trainer>/<config>/shots<n>/<target or class subset>/seed<s>`, where `<config>` is the
stem of the config file, with `+KEY=VALUE` for each key that was changed on the command line.
"""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl_clip.commands import catalogue, config, train
from dassl_clip.commands.errors import UserError, suggestion
from dassl_clip.results import records
from dassl_clip.results.tables import Row

TASKS = ("fewshot", "lodo")
DEFAULT_SHOTS = 16  # of the few-shot literature, for both tasks
ALL_SHOTS = -1
REFERENCE = "ZeroshotCLIP"
_OWN_KEYS = ("SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NAME", "DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS")
# Keys in which the reference follows the method: what is tested, on which images, with which model and words.
_SHARED_KEYS = ("DATASET.", "INPUT.", "MODEL.BACKBONE.", "TEST.SPLIT", "DATALOADER.NUM_WORKERS", "USE_CUDA")
_SHARED_SETTINGS = ("TEMPLATES", "CTX_INIT", "PREC")


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
    """A trainer in one configuration: config name or file ("" for the default) and KEY VALUE pairs, flat."""

    trainer: str
    config: str = ""
    pairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of the plan.

    Attributes:
        folder: its run folder.
        words: arguments of `train.py`.
        cfg: the resolved configuration.
        row: its row in a table.
        target: its column in a table.
    """

    folder: Path
    words: tuple[str, ...]
    cfg: Any = field(repr=False, compare=False)
    row: Row
    task: str
    target: str
    seed: int

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
        UserError: an unknown method, data set, task, target or config key.
    """
    _check_pairs(method.pairs)
    stem = catalogue.dataset_file(request.dataset).stem
    common = _common_words(request, method)
    asked = _resolve(common, method.pairs)
    name = asked.RUN.CONFIG
    domains = dataset_domains(asked)
    targets = _targets(request.targets, domains, asked.DATASET.NAME)
    runs = []
    for task in task_names(request.tasks, asked):
        if task == "lodo" and len(domains) < 2:
            raise UserError(f"lodo leaves one domain out, but {asked.DATASET.NAME} has only {domains[0]}; try fewshot")
        shots = _shots(request.shots, asked)
        for target in targets:
            sources = [target] if task == "fewshot" else [domain for domain in domains if domain != target]
            for seed in request.seeds:
                subset = asked.DATASET.get("SUBSAMPLE_CLASSES", "all")
                column = target if subset == "all" else f"{target}-{subset}"
                folder = Path(request.out, task, stem, method.trainer, name, f"shots{shots}", column)
                folder /= f"seed{seed}"
                words = [*common, "--source-domains", *sources, "--target-domains", target, "--seed", str(seed)]
                words += ["--output-dir", str(folder)]
                words += _without(method.pairs, "DATASET.NUM_SHOTS")
                words += ["DATASET.NUM_SHOTS", str(shots)]
                cfg = _resolve(words, ())
                runs.append(Run(folder, tuple(words), cfg, Row(method.trainer, name), task, target, seed))
    return runs


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
    if "CTX_INIT" in words:
        words.setdefault("TEMPLATES", "words")
    wanted |= {f"TRAINER.{trainer.upper()}.{key}": value for key, value in words.items()}
    plain = records.flatten_config(_resolve(_common_words(request, Method(trainer, name)), ()))
    changed = {key: value for key, value in wanted.items() if key in plain and plain[key] != value}
    pairs = [word for key, value in changed.items() for word in (key, value if isinstance(value, str) else repr(value))]
    return Method(trainer, name, tuple(pairs))


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
    """Every domain of the data set that a configuration names.

    Raises:
        UserError: the data set has fewer than one domain.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    domains = dataset.list_domains(cfg) if hasattr(dataset, "list_domains") else list(dataset.domains)
    if not domains:
        raise UserError(f"{cfg.DATASET.NAME} has no domains, so the tasks {', '.join(TASKS)} do not apply to it")
    return domains


def task_names(asked: Sequence[str], cfg: Any) -> list[str]:
    """The tasks to run: those asked for, or the data set's own, or leave-one-domain-out.

    Raises:
        UserError: an unknown task.
    """
    tasks = list(asked) or list(cfg.DATASET.get("TASKS", ())) or ["lodo"]
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'.{suggestion(task, TASKS)} Known: {', '.join(TASKS)}.")
    return tasks


def _targets(asked: Sequence[str], domains: Sequence[str], dataset: str) -> list[str]:
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
