"""The tests of the tasks `batch`, `stream` and `online` on a trainer that is ready to be tested.

Methods that score images together get the images of each draw or block (`transductive.py`). Of all others the scores of
an image depend on no other one, so their predictions of the whole test set are counted again.

Shapes: `N` images, `C` classes, `M` images of a draw or a block.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dassl_clip.clip.finite import check_rows
from dassl_clip.results.budgets import is_transductive

from . import distributed, signals
from .scenario_cases import parse_batch, parse_stream
from .scenarios import batch_draws, lists_hash, online_order, slots_of_stream, stream_order

if TYPE_CHECKING:
    from .trainer import CLIPTrainer
    from .transductive import TransductiveTrainer

logger = logging.getLogger(__name__)

ONE_IMAGE = "one image: its scores depend on no other"
ALL_IMAGES = "all tested images at once"
Draws = list[list[np.ndarray]]  # of each draw or order its blocks, each an index `[M]`


class ScenarioTests:
    """The tests of `SCENARIOS.TASK` of a trainer whose test set has been scored.

    Attributes:
        facts: What the record says of them: task, seed, names of the cases, those that do not apply and why, notes on
            others, and what the method needs to score an image.
    """

    def __init__(self, trainer: CLIPTrainer) -> None:
        self.trainer, self.node = trainer, trainer.cfg.SCENARIOS
        self.joint = joint_trainer(trainer)
        tested = trainer.evaluation.predictions["test"]
        self.labels = tested["labels"].cpu().numpy()
        self.hits = tested["top"][:, 0].cpu().numpy() == self.labels
        self.facts: dict[str, Any] = {"task": self.node.TASK, "seed": trainer.cfg.SEED}
        self.facts |= {"needs": self.needs(), "cases": [], "not_applicable": {}, "notes": {}}
        if self.node.TASK == "stream":
            self.facts["block"] = self.node.BLOCK

    def needs(self) -> str:
        """What the method needs to score an image."""
        if self.joint is None:
            return ALL_IMAGES if self.trainer.record_facts().get("transductive") else ONE_IMAGE
        return self.joint.needs_online if self.node.TASK == "online" and self.joint.needs_online else self.joint.needs

    def leak(self) -> str:
        """Why no draw can be scored without the other tested images; empty where it can."""
        if self.joint is None:
            learned = "it learned from all tested images, and is no TransductiveTrainer, which would score others anew"
            return learned if self.facts["needs"] == ALL_IMAGES else ""
        base = self.joint.base_record
        if not base or not is_transductive(base):
            return ""
        return (
            f"it refines a run of {base['method']} that learned from all tested images; refine one that saw none of "
            "them"
        )

    def run(self) -> dict[str, dict[str, Any]]:
        """Metrics of every case that applies, by its name in the record."""
        images = None if self.joint is None else self.joint.images(self.trainer.test_loader.dataset.data_source)
        if images is not None and len(images) != len(self.labels):
            raise RuntimeError(f"{len(images)} images to draw from, but {len(self.labels)} were tested")
        results, leak = {}, self.leak()
        for name, draws, reason in self.cases():
            self.facts["cases"].append(name)
            reason = leak or reason
            begin = time.perf_counter()
            hits = [] if reason else self.recount(draws) if images is None else list(self.score(images, draws))
            seconds = time.perf_counter() - begin
            if not hits:
                self.facts["not_applicable"][name] = reason or f"{type(self.trainer).__name__} has no such protocol"
                continue
            results[name] = draws_metrics(hits)
            results[name]["index_sha256"] = lists_hash(self.labels, draws)
            if images is not None:
                parts = sum(map(len, hits)) if self.node.TASK == "online" else sum(map(len, draws))
                results[name]["milliseconds"] = 1000 * seconds / parts
            shown = results[name]["mean_of_draws"], results[name]["draws"]
            logger.info("* %s: %.2f%%, mean of %d draws", name, *shown)
        return distributed.from_main(lambda: results)

    def cases(self) -> Iterator[tuple[str, Draws, str]]:
        """Name and draws of each case, or why there are none; what its draws differ in from its name is noted."""
        node, labels, seed = self.node, self.labels, self.trainer.cfg.SEED
        shown = len(np.unique(labels))
        if node.TASK == "batch":
            for case in map(parse_batch, map(str, node.BATCHES)):
                classes = None if case.least is None or case.most is None else (case.least, case.most)
                if case.size > len(labels):
                    yield case.name, [], f"a batch has more images than the {len(labels)} that are tested"
                    continue
                if classes and classes[1] > shown:
                    self.facts["notes"][case.name] = f"{shown} classes occur: a draw of more classes has all of these"
                yield case.name, [[index] for index in batch_draws(labels, case.size, classes, node.DRAWS, seed)], ""
        elif node.TASK == "stream":
            for text in map(str, node.STREAMS):
                gamma, slots = parse_stream(text), slots_of_stream(labels, node.BLOCK)
                if gamma is not None and slots < 2:
                    reason = f"{len(labels)} images of {shown} classes in blocks of {node.BLOCK}: without two full"
                    reason += " blocks and two classes it is a plain shuffle; give a smaller SCENARIOS.BLOCK"
                    yield f"stream {text}", [], reason
                    continue
                orders = (stream_order(labels, gamma, node.BLOCK, seed, number) for number in range(node.ORDERS))
                yield f"stream {text}", list(orders), ""
        else:
            yield "online", [[online_order(len(labels), seed, number)] for number in range(node.ORDERS)], ""

    def recount(self, draws: Draws) -> list[np.ndarray]:
        """Which images of each draw were hit, by the predictions of the whole test set."""
        return [self.hits[np.concatenate(blocks)] for blocks in draws]

    @torch.no_grad()
    def score(self, images: Any, draws: Draws) -> Iterator[np.ndarray]:
        """Which images of each draw are hit; nothing where the method has no such protocol.

        Several processes all do the same, since a method may share the work among them.
        """
        joint, labels = self.joint, torch.from_numpy(self.labels)
        assert joint is not None
        indexes = [[torch.from_numpy(block).to(images.features.device) for block in blocks] for blocks in draws]
        parts: Iterator[Tensor | None]
        if self.node.TASK == "batch":
            parts = joint.scored_draws(images, [index for (index,) in indexes])
        elif self.node.TASK == "stream":
            parts = (logits for blocks in indexes for logits in joint.logits_of_stream(images, blocks))
        else:
            parts = (joint.logits_online(images, order) for (order,) in indexes)
        for blocks in draws:
            best = []
            for block in blocks:
                if distributed.world_size() == 1:
                    signals.raise_if_stopped()
                logits = next(parts)
                if logits is None:
                    return
                check_rows(logits, "scores", [f"image {number}" for number in block.tolist()])
                best.append(logits.argmax(dim=1).cpu())
            yield (torch.cat(best) == labels[np.concatenate(blocks)]).numpy()


def joint_trainer(trainer: CLIPTrainer) -> TransductiveTrainer | None:
    """The trainer, if it scores images together."""
    from .transductive import TransductiveTrainer  # a trainer, and this module is imported by these

    return trainer if isinstance(trainer, TransductiveTrainer) else None


def draws_metrics(hits: list[np.ndarray]) -> dict[str, Any]:
    """Metrics of draws, from which images of each were hit: accuracy over images, and over draws mean and its error."""
    correct, images = [int(hit.sum()) for hit in hits], [len(hit) for hit in hits]
    accuracy = 100 * sum(correct) / sum(images)
    each = [100 * right / total for right, total in zip(correct, images)]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
    return {
        "accuracy": accuracy,
        "error_rate": 100 - accuracy,
        "correct": sum(correct),
        "total": sum(images),
        "draws": len(hits),
        "mean_of_draws": statistics.fmean(each),
        "standard_error": error,
        "correct_of_draws": correct,
        "images_of_draws": images,
    }
