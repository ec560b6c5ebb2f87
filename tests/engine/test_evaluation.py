"""Metrics and predictions of a split without a trainer.

Covers `engine/evaluation.py`: accuracy, top-5 and counts by hand, batches without readable images, what is written, and
logits that are not finite.
"""

import numpy as np
import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl_clip.engine.evaluation import PREDICTIONS, Evaluation
from dassl_clip.results.errors import NotFiniteError


@pytest.fixture
def evaluator():
    return build_evaluator(get_cfg_default(), lab2cname={number: str(number) for number in range(7)})


def batches(logits, labels, size=2):
    paths = [f"{number}.png" for number in range(len(labels))]
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        yield logits[rows], labels[rows], paths[rows]
        yield logits[:0], labels[:0], []  # none of its images could be decoded


def test_metrics_and_predictions(evaluator, tmp_path):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    ranks = logits.argsort(dim=1, descending=True)
    labels = torch.stack([ranks[0, 0], ranks[1, 0], ranks[2, 1], ranks[3, 4], ranks[4, 6]])
    evaluation = Evaluation()
    metrics = evaluation.measure("test", batches(logits, labels), evaluator)
    results = evaluation.results["test"]
    assert metrics["accuracy"] == results["accuracy"] == pytest.approx(40)
    assert (results["top5_accuracy"], results["correct"], results["total"]) == (80, 2, 5)
    evaluation.save_predictions(tmp_path, list("abcdefg"))
    with np.load(tmp_path / PREDICTIONS, allow_pickle=False) as saved:
        assert saved["paths"].tolist() == [f"{number}.png" for number in range(5)]
        assert saved["labels"].tolist() == labels.tolist() and saved["classnames"].tolist() == list("abcdefg")
        assert saved["top"].tolist() == ranks[:, :5].tolist()
        torch.testing.assert_close(torch.tensor(saved["shares"]), logits.softmax(1).gather(1, ranks[:, :5]))


def test_logits_that_are_not_finite_name_the_image(evaluator):
    logits = torch.zeros(5, 7)
    logits[3, 2] = float("nan")
    with pytest.raises(NotFiniteError, match=r"3\.png"):
        Evaluation().measure("test", batches(logits, torch.zeros(5, dtype=torch.int64)), evaluator)
