"""One probe: a method trained and tested in a world, inside this process, and everything that a check looks at.

A probe does what a run does (`experiments/run.py`), with the same recorder around it, but for what concerns a run's
folder: locks, identity, the console. What it prints goes to `log.txt` in its folder.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl_clip.engine.errors import is_user_error, sentence
from dassl_clip.engine.overrides import Overrides, resolve_config
from dassl_clip.experiments.recording import EvaluationRecorder
from dassl_clip.experiments.run import load_run
from dassl_clip.results import records, run_data
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE

from .world import World

Scores = dict[str, Tensor]  # name of a test picture -> the log-softmax of its logits, `[C]`


class Stopped(Exception):
    """Raised inside a probe that is to end early."""


class ProbeError(Exception):
    """What a probe raised.

    Attributes:
        text: one line of it.
        refused: it is a one-line error for a user, not a traceback.
    """

    def __init__(self, error: BaseException) -> None:
        self.text = f"{'' if is_user_error(error) else type(error).__name__ + ': '}{sentence(error)}"
        self.refused = is_user_error(error)
        super().__init__(self.text)


@dataclass
class Outcome:
    """What a probe showed.

    Attributes:
        passes: the scores of each test on the test pictures, in order.
        start, learned: the registered models' tensors before training and after it, by `model/tensor`.
        saved: the same as the last checkpoint holds them.
        steps: what each training step returned.
        facts: the run's record.
        seconds: of the whole probe.
        folder: its run folder.
    """

    folder: Path
    passes: list[Scores] = field(default_factory=list)
    start: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def scores(self) -> Scores:
        """The scores of the last test."""
        return self.passes[-1]


@dataclass(frozen=True)
class Plan:
    """How a method is probed.

    Attributes:
        trainer: registry name.
        config: yaml file of the method, "" for none.
        imports: modules or files with trainers of the user's own.
        pairs: KEY VALUE pairs.
    """

    trainer: str
    config: str = ""
    imports: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def resolve(self, root: Path, folder: Path, world: World, seed: int, pairs: Sequence[tuple[str, str]]) -> Any:
        """The configuration of a probe."""
        flags = (
            ("TRAINER.NAME", self.trainer),
            ("DATASET.ROOT", str(root)),
            ("SEED", seed),
            ("OUTPUT_DIR", str(folder)),
            ("DATASET.SOURCE_DOMAINS", world.sources),
            ("DATASET.TARGET_DOMAINS", world.targets),
        )
        own = (("DATASET.NAME", "CheckWorld"), ("USE_CUDA", "False"), ("RUN.TASK", "check"))
        return resolve_config(Overrides("", self.config, flags, (*own, *self.pairs, *pairs), self.imports))


def run_probe(
    config: Any,
    world: World,
    *,
    learned_by: Outcome | None = None,
    tests: int = 1,
    stop_before_epoch: int | None = None,
    prepare: Callable[[Any], None] | None = None,
    cache: bool = True,
    watch_node: tuple[str, set[str]] | None = None,
    build_only: bool = False,
) -> Outcome:
    """Train and test the method of a configuration in a world.

    Args:
        config: of `Plan.resolve`.
        world: the world under its DATASET.ROOT.
        learned_by: a probe whose learned parts are loaded from its folder, in place of training.
        tests: how often the test pictures are tested.
        stop_before_epoch: number of the epoch before which the run is interrupted.
        prepare: called with the built trainer.
        cache: whether features are cached on the disk.
        watch_node: name of a node of TRAINER, and a set that gets its keys that are read once the trainer is there.
        build_only: stop when the trainer is there.

    Raises:
        ProbeError: the method raised something.
    """
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    folder = Path(config.OUTPUT_DIR)
    outcome, begun = Outcome(folder), time.monotonic()
    with _logged(folder), _without_cache(not cache):
        try:
            set_random_seed(config.SEED)
            if watch_node is not None:
                config = _watched(config, *watch_node)
            trainer = build_trainer(config)
            if build_only:
                return outcome
            dataset = trainer.dm.dataset
            data = getattr(trainer, "data", None)
            data = data if isinstance(data, run_data.RunData) else run_data.data_of(dataset)
            recorder = EvaluationRecorder(trainer, config, data)
            names = {picture.path: picture.name for picture in world.test}
            _watch_tests(trainer, names, outcome)
            _watch_steps(trainer, outcome)
            if prepare is not None:
                prepare(trainer)
            outcome.start = tensors_of(trainer)
            if stop_before_epoch is not None:
                _stop(trainer, stop_before_epoch)
            if learned_by is None:
                trainer.train()
                recorder.write()
            else:
                if trainer.get_model_names():
                    load_run(trainer, str(learned_by.folder), None)
                trainer.test()
            for _ in range(tests - 1):
                trainer.test()
            outcome.learned = tensors_of(trainer)
        except Stopped:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            raise ProbeError(error) from error
    if learned_by is None and stop_before_epoch is None and (folder / records.RECORD_NAME).is_file():
        outcome.facts = dict(records.read_record(folder))
    outcome.saved = saved_tensors(folder, trainer.get_model_names())
    outcome.seconds = time.monotonic() - begun
    if config.DATALOADER.NUM_WORKERS:
        del trainer, recorder
        gc.collect()  # workers of loaders end with them
    return outcome


def _watched(config: Any, node: str, seen: set[str]) -> Any:
    """The configuration with a node that notes which of its keys are read, but for those that `check_cfg` looks at."""
    config = config.clone()
    config.defrost()
    kind = type("WatchedNode", (_WatchedNode,), {"seen": seen})
    config.TRAINER[node] = kind(dict(config.TRAINER[node]))
    config.freeze()
    return config


class _WatchedNode(CfgNode):
    """A node of the configuration that notes in `seen` which keys are read, other than by `check_cfg`."""

    seen: set[str]

    def _note(self, name: str) -> None:
        frame, checks = sys._getframe(2), False
        while frame is not None and not checks:
            checks, frame = frame.f_code.co_name == "check_cfg", frame.f_back
        if not checks:
            self.seen.add(name)

    def __getattr__(self, name: str) -> Any:
        self._note(name)
        return super().__getattr__(name)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)


def tensors_of(trainer: Any) -> dict[str, Tensor]:
    """Copies of the tensors of all registered models, by `model/tensor`."""
    return {
        f"{name}/{key}": value.detach().cpu().clone()
        for name in trainer.get_model_names()
        for key, value in trainer._models[name].state_dict().items()
    }


def saved_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the checkpoint of each model that is loaded by default: the best one, else the newest epoch's."""
    from dassl.utils import load_checkpoint

    saved: dict[str, Tensor] = {}
    for name in names:
        files = sorted((folder / name).glob("model.pth.tar-*"), key=lambda file: int(file.name.rpartition("-")[2]))
        files += sorted((folder / name).glob("model-best.pth.tar"))
        if files:
            state = load_checkpoint(str(files[-1]))["state_dict"]
            saved |= {f"{name}/{key}": value for key, value in state.items()}
    return saved


def _watch_tests(trainer: Any, names: Mapping[str, str], outcome: Outcome) -> None:
    """Keep the scores of every test on the test pictures, by picture, whichever way the trainer tests."""
    process, parse, test = trainer.evaluator.process, trainer.parse_batch_test, trainer.test
    rows: list[Tensor] = []
    paths: list[str] = []

    def kept_process(output: Any, *rest: Any, **named: Any) -> Any:
        scores = output[0] if isinstance(output, (tuple, list)) else output
        rows.append(scores.detach().cpu().float().log_softmax(dim=1))
        return process(output, *rest, **named)

    def kept_parse(batch: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(batch, dict):
            paths.extend(batch.get("impath", ()))
        return parse(batch, *rest, **named)

    def kept_test(*args: Any, **named: Any) -> Any:
        rows.clear()
        paths.clear()
        value = test(*args, **named)
        scores = torch.cat(rows) if rows else torch.zeros(0, 0)
        own = getattr(trainer, "evaluation", None)
        seen = own.predictions.get("test", {}).get("paths", []) if own is not None else paths
        tested = seen if len(seen) == len(scores) else [item.impath for item in trainer.dm.dataset.test]
        if len(tested) == len(scores) and all(path in names for path in tested):  # else another split
            outcome.passes.append({names[path]: row for path, row in zip(tested, scores)})
        return value

    trainer.evaluator.process, trainer.parse_batch_test, trainer.test = kept_process, kept_parse, kept_test


def _watch_steps(trainer: Any, outcome: Outcome) -> None:
    step = trainer.forward_backward

    def kept(*batches: Any) -> Any:
        summary = step(*batches)
        outcome.steps.append(summary or {})
        return summary

    trainer.forward_backward = kept


def _stop(trainer: Any, epoch: int) -> None:
    before = trainer.before_epoch

    def begin() -> None:
        if trainer.epoch == epoch:
            raise Stopped
        before()

    trainer.before_epoch = begin


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Within this context all that is printed goes to the folder's log; python's warnings too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "log.txt", "a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("always")
        yield


@contextlib.contextmanager
def _without_cache(wanted: bool) -> Iterator[None]:
    before = os.environ.get(CACHE_VARIABLE)
    if wanted:
        os.environ[CACHE_VARIABLE] = CACHE_OFF
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = before
