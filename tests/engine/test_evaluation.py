"""Metrics and predictions of a split without a trainer.

Covers `engine/evaluation.py`: accuracy, top-5 and counts by hand, batches without readable images, what is written, and
logits that are not finite; ECE, Brier score and NLL by a float64 loop and in closed form, in `measure` and
`metrics_of`; the saved scores, their resolution, scores beyond float16, and how much memory they take.
"""

import math
import sys

import numpy as np
import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl_clip.clip.rows import Cosines
from dassl_clip.engine import evaluation as module
from dassl_clip.engine.evaluation import PREDICTIONS, Evaluation, metrics_of
from dassl_clip.results.errors import NotFiniteError
from dassl_clip.results.predictions import read_predictions

TRUST = ("ece", "brier", "nll")


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
    metrics = evaluation.measure("test", batches(logits, labels), evaluator, 5)
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
        Evaluation().measure("test", batches(logits, torch.zeros(5, dtype=torch.int64)), evaluator, 5)


def by_loop(logits, labels, bins=15):
    """ECE in percent, Brier score and NLL, image by image in float64."""
    shown, right, confident, brier, nll = [0] * bins, [0] * bins, [0.0] * bins, [], []
    for row, label in zip(logits.double().tolist(), labels.tolist()):
        powers = [math.exp(value - max(row)) for value in row]
        shares = [power / sum(powers) for power in powers]
        confidence = max(shares)
        place = next(m for m in range(bins) if confidence <= (m + 1) / bins)
        shown[place] += 1
        right[place] += shares.index(confidence) == label
        confident[place] += confidence
        brier.append(sum((share - (c == label)) ** 2 for c, share in enumerate(shares)))
        nll.append(-math.log(shares[label]))
    n = len(labels)
    gaps = [s / n * abs(r / s - c / s) for s, r, c in zip(shown, right, confident) if s]
    return {"ece": 100 * sum(gaps), "brier": sum(brier) / n, "nll": sum(nll) / n}


def measured(evaluator, logits, labels, folder=None):
    """The measures of calibration, and the saved scores."""
    evaluation = Evaluation()
    evaluation.measure("test", batches(logits, labels), evaluator, len(labels) + 1)  # one cannot be read
    if folder is None:
        return {key: evaluation.results["test"][key] for key in TRUST}, None
    evaluation.save_predictions(folder, [str(number) for number in range(logits.shape[1])])
    return {key: evaluation.results["test"][key] for key in TRUST}, read_predictions(folder, scores=True).scores


def test_calibration_is_that_of_a_float64_loop(evaluator, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    logits, labels = 3 * torch.randn(400, 7, generator=generator), torch.randint(7, (400,), generator=generator)
    wanted = by_loop(logits, labels)
    assert 5 < wanted["ece"] < 90  # or any program would pass
    assert measured(evaluator, logits, labels)[0] == pytest.approx(wanted, rel=1e-5)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 64)
    found = metrics_of(logits, labels, 7, 1.0)
    assert {key: found[key] for key in TRUST} == pytest.approx(wanted, rel=1e-5)
    features, proxies = torch.nn.functional.normalize(torch.randn(400, 8, generator=generator), dim=1), torch.eye(8)[:7]
    found = metrics_of(Cosines(features, proxies.T), labels, 7, 20.0)
    wanted = by_loop(20 * features @ proxies.T, labels)
    assert {key: found[key] for key in TRUST} == pytest.approx(wanted, rel=1e-5)
    assert set(metrics_of(logits, labels, 7)).isdisjoint(TRUST)  # of scores that are no logits nothing is said


def test_calibration_in_closed_form(evaluator):
    labels = torch.arange(7).repeat(2)
    uniform, _ = measured(evaluator, torch.zeros(14, 7), labels)
    # The best of equal classes is any one of them, which is right for two of the fourteen images.
    assert uniform == pytest.approx({"ece": 0, "brier": 1 - 1 / 7, "nll": math.log(7)}, abs=1e-5)
    sure = 1000 * torch.nn.functional.one_hot(labels, 7).float()
    assert measured(evaluator, sure, labels)[0] == {"ece": 0, "brier": 0, "nll": 0}
    wrong = measured(evaluator, sure.roll(1, 0), labels)[0]
    assert wrong == pytest.approx({"ece": 100, "brier": 2, "nll": 1000})
    # Two bins, each as often right as it says: 0.9 in nine of ten images, 0.6 in three of five.
    shares = torch.full((15, 7), 0.1 / 6)
    shares[:10, 0], shares[10:, 0], shares[10:, 1:] = 0.9, 0.6, 0.4 / 6
    labels = torch.tensor([0] * 9 + [1] + [0] * 3 + [1] * 2)
    found, _ = measured(evaluator, shares.log(), labels)
    brier = [9 * (0.01 + 6 / 3600), 0.81 + (1 - 1 / 60) ** 2 + 5 / 3600, 3 * (0.16 + 6 / 225)]
    brier.append(2 * (0.36 + (1 - 1 / 15) ** 2 + 5 / 225))
    nll = -(9 * math.log(0.9) + math.log(1 / 60) + 3 * math.log(0.6) + 2 * math.log(1 / 15)) / 15
    assert found == pytest.approx({"ece": 0, "brier": sum(brier) / 15, "nll": nll}, abs=5e-5)
    found, _ = measured(evaluator, shares.log(), torch.zeros(15, dtype=torch.int64))
    assert found["ece"] == pytest.approx(100 * (10 * 0.1 + 5 * 0.4) / 15, abs=1e-4)


def test_saved_scores_are_the_log_softmax_in_float16(evaluator, tmp_path):
    logits = 20 * torch.randn(9, 7, generator=torch.Generator().manual_seed(2))
    _, scores = measured(evaluator, logits, torch.arange(9) % 7, tmp_path)
    exact = logits.double().log_softmax(dim=1).numpy()
    assert scores.dtype == np.float16 and scores.shape == (9, 7)
    assert (np.abs(scores - exact) <= 2**-11 * np.abs(exact) + 1e-6).all() and np.abs(scores - exact).max() > 1e-4
    assert read_predictions(tmp_path).scores is None  # not asked for
    logits[0, 1] = -1e6
    _, scores = measured(evaluator, logits, torch.arange(9) % 7, tmp_path)
    assert np.isfinite(scores).all() and scores[0, 1] == np.finfo(np.float16).min


MEMORY = """
import ctypes, re, torch
from pathlib import Path
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl_clip.engine.evaluation import Evaluation

ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: memory that a batch frees goes back
torch.set_num_threads(1)
evaluator = build_evaluator(get_cfg_default(), lab2cname={number: str(number) for number in range(1000)})
labels, names = torch.zeros(500, dtype=torch.int64), ["a"] * 500
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
for count in (1, 80):
    before, evaluation = peak(), Evaluation()
    evaluation.measure("test", ((torch.randn(500, 1000), labels, names) for _ in range(count)), evaluator, 500 * count)
print((peak() - before) / 80e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_scores_of_many_images_take_two_bytes_each(helper, tmp_path):
    """40,000 images of 1,000 classes: 80 MB beside a batch; collected in float32, or in a list first, it is twice that.

    Whether freed memory goes back depends on the allocator, which is set to return it after every batch.
    """
    program = tmp_path / "memory.py"
    program.write_text(MEMORY)
    out, err = helper.start([program], tmp_path).communicate()
    assert out, err
    assert 0.9 < float(out.split()[-1]) < 1.5
