"""A record for every trainer: what a plain Dassl trainer does not write itself is observed from outside.

Trainers of this project write a richer record of their own, and then nothing is done here.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dassl_clip.clip.finite import check_rows
from dassl_clip.engine.fingerprint import config_facts, named_files
from dassl_clip.engine.record import is_trained, selection_rule
from dassl_clip.engine.source import known_budget
from dassl_clip.results import environment, records
from dassl_clip.results.protocols import EVALUATION, RULE_NOT_RECORDED, TRANSFER_TASKS, trained_on
from dassl_clip.results.run_data import RunData, read_data

from . import identity

logger = logging.getLogger(__name__)


class EvaluationRecorder:
    """Watches a Dassl trainer's tests from outside, and writes the run's record if the trainer does not.

    Args:
        trainer: a built trainer; its `test` and its evaluator's `process` and `evaluate` are wrapped on the instance.
        cfg: the run's configuration.
        data: its images, None where the trainer has no lists of images.
    """

    def __init__(self, trainer: Any, cfg: Any, data: RunData | None = None) -> None:
        self.trainer, self.cfg, self.data = trainer, cfg, data
        self.folder = Path(cfg.OUTPUT_DIR)
        self.metrics: dict[str, dict[str, Any]] = {}
        self.extra: dict[str, Any] = {}
        self._present = self._stamp()
        self._started = time.monotonic()
        self._test_seconds = 0.0
        self._total = self._correct = 0
        self._loader: Any = None  # of the images that are tested
        self._results: Mapping[str, Any] = {}
        self._epoch: int | None = None
        self._wrap()

    def evaluates(self, folder: Path, epoch: int | None = None) -> None:
        """Note that the models are those of an earlier run: the record says what they were trained on.

        Args:
            folder: the run's folder.
            epoch: the epoch that was asked for; None: the run's own choice.
        """
        trained = identity.trained_facts(folder)
        self.extra = {"evaluated_from": str(folder.resolve()), "trained": trained, "num_train": 0}
        keys = ("num_train", "shots", "seed", "source_domains")
        self.extra |= {key: trained[key] for key in keys if key in trained}
        self._epoch = epoch
        if self.cfg.RUN.TASK not in TRANSFER_TASKS:
            self.extra["task"] = EVALUATION
        then = read_data(Path(trained["folder"]))
        tests = self.data.facts()["test"] if self.data is not None else ""
        alike = then is None and bool(tests and trained.get("data", {}).get("test") == tests)
        again = alike or self._tested_of(then, "test") > 0
        jointly = bool(getattr(self.trainer, "scores_jointly", False))
        self.extra["transductive"] = jointly or (bool(trained.get("transductive")) and again)
        learned_from = self._tested_of(then, "train") if self.extra["num_train"] else 0
        if learned_from:
            self.extra["tested_training_images"] = learned_from
            logger.warning("%d of the tested images were trained on", learned_from)
        target = "+".join(self.cfg.DATASET.TARGET_DOMAINS)
        where = self.cfg.DATASET.NAME + (f"/{target}" if target else "")
        own = getattr(getattr(getattr(self.trainer, "dm", None), "dataset", None), "protocol", "")
        told = f"evaluation: trained on {trained_on(trained)}, tested on {where}"
        self.extra["protocol"] = f"{told}; {own}" if own else told

    def _tested_of(self, then: RunData | None, part: str) -> int:
        """How many images of a part of an earlier run are tested now."""
        if then is None or self.data is None:
            return 0
        earlier = {(image.path, image.size) for image in then.images if image.part == part}
        return len({(image.path, image.size) for image in self.data.images if image.part == "test"} & earlier)

    def _evaluated_rule(self, trained: Mapping[str, Any]) -> str:
        """Which weights of the evaluated run are tested, and by what they were chosen."""
        if self._epoch is not None:
            return f"epoch {self._epoch}, as asked for"
        own: Callable[[Mapping[str, Any]], str] | None = getattr(self.trainer, "evaluated_rule", None)
        return own(trained) if own is not None else trained.get("selection_rule", RULE_NOT_RECORDED)

    def write(self) -> None:
        """Write the record, unless the trainer has written one."""
        if self._stamp() != self._present:
            return
        if self.metrics:
            logger.info("Record written to %s", records.write_record(self.folder, self._record()))
        else:
            logger.info("No %s: this run tested nothing.", records.RECORD_NAME)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self.folder / records.RECORD_NAME).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _wrap(self) -> None:
        evaluator = getattr(self.trainer, "evaluator", None)
        if evaluator is None:
            return
        test, process, evaluate = self.trainer.test, evaluator.process, evaluator.evaluate

        def counted_process(output: Any, target: Any, *rest: Any, **named: Any) -> Any:
            scores = output[0] if isinstance(output, (tuple, list)) else output
            if getattr(scores, "ndim", 0) == 2 and getattr(target, "ndim", 0) == 1:
                best = scores.amax(dim=1, keepdim=True)  # -inf may stand for a class that is left out, NaN for nothing
                check_rows(best, "scores", self._names(len(scores)))
                self._total += int(target.shape[0])
                self._correct += int((scores.argmax(dim=1) == target).sum())
            return process(output, target, *rest, **named)

        def kept_evaluate(*rest: Any, **named: Any) -> Any:
            self._results = evaluate(*rest, **named)
            return self._results

        def timed_test(split: str | None = None, *rest: Any, **named: Any) -> Any:
            self._total = self._correct = 0
            self._results = {}
            self._loader = getattr(self.trainer, f"{self._split(split)}_loader", None)
            begun = time.monotonic()
            value = test(split, *rest, **named) if split is not None or rest or named else test()
            self._test_seconds = time.monotonic() - begun
            if self._total or self._results:
                accuracy = 100.0 * self._correct / max(self._total, 1)
                numbers: dict[str, Any] = {"accuracy": accuracy, "error_rate": 100.0 - accuracy}
                for key, number in self._results.items():
                    with contextlib.suppress(TypeError, ValueError):  # what is no number is left out
                        numbers[key] = float(number)
                self.metrics[self._split(split)] = numbers | {"total": self._total, "correct": self._correct}
            return value

        evaluator.process, evaluator.evaluate, self.trainer.test = counted_process, kept_evaluate, timed_test

    def _names(self, count: int) -> list[str]:
        """What the next images of the test are called: their paths, since test loaders go through them in order."""
        numbers = range(self._total, self._total + count)
        items = getattr(getattr(self._loader, "dataset", None), "data_source", ())
        return [getattr(items[n], "impath", "") if n < len(items) else f"image {n + 1}" for n in numbers]

    def _split(self, asked: str | None) -> str:
        split = asked or self.cfg.TEST.SPLIT
        return "val" if split == "val" and getattr(self.trainer, "val_loader", None) is not None else "test"

    def _record(self) -> dict[str, Any]:
        if "trained" in self.extra:
            self.extra["selection_rule"] = self._evaluated_rule(self.extra["trained"])
        own: Callable[[], dict[str, Any]] | None = getattr(self.trainer, "record_facts", None)
        if own is not None:
            return config_facts(self.cfg) | environment.environment_facts() | own() | self.extra
        total = time.monotonic() - self._started
        node = self.cfg.TRAINER.get(self.cfg.TRAINER.NAME.upper(), {})
        dataset = getattr(getattr(self.trainer, "dm", None), "dataset", None)
        facts = config_facts(self.cfg) | environment.environment_facts()
        facts["protocol"] = getattr(dataset, "protocol", facts["protocol"])
        return facts | {
            "selection_rule": selection_rule(self.trainer),
            "transductive": self._adapts_to_tested(dataset),
            "prompt": str(node.get("CTX_INIT", "")),
            "backbone": {"name": str(self.cfg.MODEL.BACKBONE.NAME), "weights_hash": ""},
            "num_train": len(getattr(dataset, "train_x", None) or ()) if is_trained(self.trainer) else 0,
            "metrics": self.metrics,
            "losses": {},
            "seconds": {"train": total - self._test_seconds, "test": self._test_seconds, "total": total},
            "device": str(getattr(self.trainer, "device", "cpu")),
            "precision": str(node.get("PREC", "fp32")),
            "data_fingerprint": self.data.fingerprint if self.data is not None else "",
            "data": self.data.facts() if self.data is not None else {},
            "files": named_files(self.cfg),
            "budget": known_budget(type(self.trainer), self.cfg),
            **self.extra,
        }

    def _adapts_to_tested(self, dataset: Any) -> bool:
        """Whether the trainer is one of unlabelled images too, and some of those are tested."""
        from dassl.engine import TrainerXU

        tested = {item.impath for item in getattr(dataset, "test", None) or ()}
        unlabelled = getattr(dataset, "train_u", None) or ()
        return isinstance(self.trainer, TrainerXU) and any(item.impath in tested for item in unlabelled)
