"""Accuracy, error, macro F1, accuracy per class and the confusion matrix."""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.utils import mkdir_if_missing
from dassl.utils.atomic import atomic_write
from dassl.utils.errors import CheckError
from dassl.utils.on_demand import import_on_demand

from .build import EVALUATOR_REGISTRY

__getattr__ = import_on_demand(
    __name__, osp="os.path", f1_score="sklearn.metrics:f1_score", confusion_matrix="sklearn.metrics:confusion_matrix"
)


class EvaluatorBase:
    """What an evaluator offers: it is reset, fed with batches, and asked for the results."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forgets everything."""
        raise NotImplementedError

    def process(self, mo, gt) -> None:
        """Takes a batch: model output and ground truth."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """The results; the first is the one that selects models."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Counts right answers.

    Args:
        cfg: The configuration; reads TEST.PER_CLASS_RESULT, TEST.COMPUTE_CMAT and OUTPUT_DIR.
        lab2cname: Class name of each label, needed for the results per class.

    Raises:
        AssertionError: Results per class are asked for without `lab2cname`.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise CheckError("TEST.PER_CLASS_RESULT needs the class names: give lab2cname to the evaluator")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forgets every batch."""
        self._correct = 0
        self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        self._per_class_res = defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Takes a batch.

        Args:
            mo: Logits [B, C].
            gt: Labels [B], on the same device.
        """
        predicted = mo.max(1).indices
        matches = predicted.eq(gt)
        self._correct += int(matches.sum())
        self._total += gt.shape[0]
        labels = gt.tolist()
        self._y_true.extend(labels)
        self._y_pred.extend(predicted.tolist())
        if self._per_class_res is not None:
            for label, match in zip(labels, matches.tolist()):
                self._per_class_res[label].append(int(match))

    def evaluate(self) -> OrderedDict[str, float]:
        """Prints the results and returns them.

        Returns:
            `accuracy`, `error_rate`, `macro_f1` and, with results per class, `perclass_accuracy`, all in percent.

        Raises:
            ValueError: No batch was processed.
        """
        if self._total == 0:
            raise ValueError("There is nothing to evaluate: the evaluator has seen no sample. Is the test set empty?")
        confusion, occurring = _count_pairs(self._y_true, self._y_pred)
        results = OrderedDict()
        results["accuracy"] = 100.0 * self._correct / self._total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * _macro_f1(confusion)
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {results['accuracy']:.2f}%\n"
            f"* error: {results['error_rate']:.2f}%\n"
            f"* macro_f1: {results['macro_f1']:.2f}%"
        )
        if self._per_class_res is not None:
            results["perclass_accuracy"] = self._report_classes()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(confusion, occurring)
        return results

    def _report_classes(self) -> float:
        print("=> per-class result")
        accuracies = []
        for label in sorted(self._per_class_res):
            matches = self._per_class_res[label]
            correct, total = sum(matches), len(matches)
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname.get(label, 'not in lab2cname')})\t"
                f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion(self, confusion: np.ndarray, occurring: np.ndarray) -> None:
        """Writes the row-normalised confusion matrix [K, K] over the K labels that occur, as a tensor."""
        rows = confusion.sum(1, keepdims=True)
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        with atomic_write(path) as file:
            torch.save(torch.from_numpy(confusion / np.maximum(rows, 1)), file)
        if len(occurring) <= occurring[-1]:
            print(f"Rows and columns of the confusion matrix are the labels {occurring.tolist()}")
        print(f"Confusion matrix is saved to {path}")


def _count_pairs(true: list[int], predicted: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Confusion counts [K, K] (rows: true) over the K labels that occur in either list, and those labels."""
    occurring, codes = np.unique(np.array([true, predicted]), return_inverse=True)
    codes = codes.reshape(2, -1)
    size = len(occurring)
    return np.bincount(codes[0] * size + codes[1], minlength=size * size).reshape(size, size), occurring


def _macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 of the labels that occur among the true ones."""
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = true > 0
    return float(np.mean(2 * hits[present] / (true[present] + predicted[present])))
