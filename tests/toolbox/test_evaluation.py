"""The evaluator's results and block, the confusion matrix, accuracies and distances, all against naive loops."""

import pytest
import torch

from dassl.evaluation import Classification, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix

NAMES = {0: "cat", 1: "dog", 2: "emu", 3: "fox"}


def naive_f1(true: list[int], predicted: list[int]) -> float:
    """Mean over the true labels of 2 P R / (P + R)."""
    values = []
    for label in sorted(set(true)):
        hits = sum(t == p == label for t, p in zip(true, predicted))
        precision, recall = hits / max(predicted.count(label), 1), hits / true.count(label)
        values.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return 100 * sum(values) / len(values)


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (1234,), generator=generator)
    logits = torch.randn(1234, 4, generator=generator)
    logits[torch.arange(1234), labels] += 1.5
    return logits, labels


def feed(evaluator, logits, labels):
    evaluator.reset()
    for start in range(0, len(labels), 100):
        evaluator.process(logits[start : start + 100], labels[start : start + 100])
    return evaluator.evaluate()


def test_results_and_block(make_cfg, scores, capsys):
    logits, labels = scores
    predicted = logits.argmax(1)
    correct = int((predicted == labels).sum())
    evaluator = build_evaluator(make_cfg(), lab2cname=NAMES)
    capsys.readouterr()
    results = feed(evaluator, logits, labels)
    f1 = naive_f1(labels.tolist(), predicted.tolist())
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * correct / 1234)
    assert results["error_rate"] == pytest.approx(100 - results["accuracy"])
    assert results["macro_f1"] == pytest.approx(f1)
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 1,234",
        f"* correct: {correct:,}",
        f"* accuracy: {results['accuracy']:.2f}%",
        f"* error: {results['error_rate']:.2f}%",
        f"* macro_f1: {f1:.2f}%",
    ]
    assert feed(evaluator, logits, labels) == results


def test_results_per_class(make_cfg, capsys):
    evaluator = Classification(make_cfg("TEST.PER_CLASS_RESULT", True), lab2cname=NAMES)
    labels = torch.tensor([2] * 4 + [0] * 10)
    logits = torch.eye(4)[torch.tensor([2, 2, 2, 0] + [0] * 9 + [1])]
    results = feed(evaluator, logits, labels)
    assert results["perclass_accuracy"] == pytest.approx((90 + 75) / 2)
    assert capsys.readouterr().out.splitlines()[6:] == [
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 10\tcorrect: 9\tacc: 90.0%",
        "* class: 2 (emu)\ttotal: 4\tcorrect: 3\tacc: 75.0%",
        "* average: 82.5%",
    ]
    with pytest.raises(AssertionError, match="lab2cname"):
        Classification(make_cfg("TEST.PER_CLASS_RESULT", True))


def test_9_6_the_line_of_the_confusion_matrix_is_the_originals(make_cfg, capsys):
    """(row 9.6) Tools look for that line; labels that are missing are told on a line of their own."""
    cfg = make_cfg("TEST.COMPUTE_CMAT", True)
    feed(Classification(cfg), torch.eye(3), torch.arange(3))
    assert capsys.readouterr().out.splitlines()[-1] == f"Confusion matrix is saved to {cfg.OUTPUT_DIR}/cmat.pt"
    feed(Classification(cfg), torch.eye(5)[[0, 3]], torch.tensor([0, 3]))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Rows and columns of the confusion matrix are the labels [0, 3]",
        f"Confusion matrix is saved to {cfg.OUTPUT_DIR}/cmat.pt",
    ]


def test_confusion_matrix_is_a_tensor_on_disk(make_cfg, scores):
    logits, labels = scores
    cfg = make_cfg("TEST.COMPUTE_CMAT", True)
    feed(Classification(cfg), logits, labels)
    matrix = torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=True)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for true, predicted in zip(labels, logits.argmax(1)):
        expected[true, predicted] += 1 / (labels == true).sum().item()
    torch.testing.assert_close(matrix, expected)


def test_empty_test_set_is_named(make_cfg):
    with pytest.raises(ValueError, match="no sample"):
        Classification(make_cfg()).evaluate()


def test_accuracy_counts_the_k_largest(scores):
    logits, labels = scores
    expected = []
    for k in (1, 2, 3):
        hits = sum(int(label) in sorted(range(4), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels))
        expected.append(100 * hits / len(labels))
    for output in (logits, (logits, None), [logits]):
        result = compute_accuracy(output, labels, topk=(1, 2, 3))
        assert [value.shape for value in result] == [(1,)] * 3
        assert [value.item() for value in result] == pytest.approx(expected)
    assert compute_accuracy(logits, labels)[0].item() == pytest.approx(expected[0])


def test_distances():
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    squared = torch.tensor([[((x - y) ** 2).sum() for y in b] for x in a])
    cosine = torch.tensor([[1 - x @ y / (x.norm() * y.norm()) for y in b] for x in a])
    torch.testing.assert_close(compute_distance_matrix(a, b).float(), squared.float())
    torch.testing.assert_close(compute_distance_matrix(a, b, "cosine").float(), cosine.float())
    with pytest.raises(ValueError, match="manhattan"):
        compute_distance_matrix(a, b, "manhattan")
    with pytest.raises(AssertionError):
        compute_distance_matrix(a, b[:, :4])
