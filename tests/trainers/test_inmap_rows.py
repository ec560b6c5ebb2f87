"""Features that are read in row blocks: `inmap.FeatureRows`.

Covers: half-precision and memory-mapped tensors and a class that reads a file give the potentials and proxies of the
same numbers in memory; nobody asks for more rows than a block holds (a sample for the curvature apart); a memory-mapped
tensor is not changed; numbers that are not finite are refused with their row.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.trainers.inmap.labels import (
    Cosines,
    PseudoLabels,
    proxy_objective,
    sinkhorn_potentials,
    solve_vision_proxy,
)
from dassl_clip.trainers.inmap.objective import SAMPLE_ROWS

N, E, C, TAU, BLOCK = 300, 24, 7, 0.05, 32


class FromFile:
    """Rows of a file of float16 numbers, which remembers how many were asked for at once."""

    def __init__(self, path, columns):
        self.path, self.columns = path, columns
        self.shape = torch.Size((path.stat().st_size // 2 // columns, columns))
        self.dtype, self.device, self.asked = torch.float16, torch.device("cpu"), []

    def __getitem__(self, rows):
        found = np.memmap(self.path, np.float16, "r", shape=tuple(self.shape))[rows]
        self.asked.append((rows.step or 1, len(found)))
        return torch.from_numpy(found.copy())


@pytest.fixture
def problem(tmp_path):
    """Features in half precision in memory, in a file, and memory-mapped; and a text proxy."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(N, E, generator=generator), dim=1).half()
    path = tmp_path / "rows.f16"
    features.numpy().tofile(path)
    mapped = torch.from_numpy(np.memmap(path, np.float16, "r+", shape=(N, E)))
    text = F.normalize(torch.randn(E, C, generator=generator), dim=0)
    return features, FromFile(path, E), mapped, text


def solve(features, text):
    scores = Cosines(features, text)
    potentials = sinkhorn_potentials(scores, TAU, gamma=0.5, block_rows=BLOCK)
    labels = PseudoLabels(scores, TAU, potentials)
    return potentials, solve_vision_proxy(features, text, labels, 4 * TAU, steps=12, block_rows=BLOCK)


def test_rows_of_any_source_give_the_solution_of_rows_in_memory(problem):
    half, file, mapped, text = problem
    potentials, solution = solve(half.float(), text)
    for features in (half, file, mapped):
        own_potentials, own = solve(features, text)
        torch.testing.assert_close(own_potentials, potentials, rtol=0, atol=1e-12)
        torch.testing.assert_close(own.proxy, solution.proxy, rtol=0, atol=1e-6)
        assert own.objective == pytest.approx(solution.objective, rel=1e-9)
    assert torch.equal(mapped, half)


def test_no_more_rows_are_asked_for_than_a_block_holds(problem):
    _, file, _, text = problem
    solve(file, text)
    assert max(count for step, count in file.asked if step == 1) <= max(BLOCK, -(-N // max(1, N // SAMPLE_ROWS)))
    whole = [count for step, count in file.asked if step == 1 and count > BLOCK]
    assert len(whole) == 1  # the sample for the curvature, which is all rows of so small a problem


def test_the_objective_is_that_of_the_same_numbers_in_float64(problem):
    half, file, _, text = problem
    labels = (half.double() @ text.double() / TAU).softmax(dim=1)
    logits = half.double() @ text.double() / (4 * TAU)
    expected = -(labels * logits.log_softmax(dim=1)).sum(dim=1).mean()
    found = proxy_objective(file, text, labels.float(), 4 * TAU, block_rows=BLOCK)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_row_that_is_not_finite_is_named(problem):
    half, _, _, text = problem
    half[BLOCK + 5, 3] = float("inf")
    labels = torch.full((N, C), 1 / C)
    with pytest.raises(ValueError, match=f"row {BLOCK + 5} "):
        proxy_objective(half, text, labels, TAU, block_rows=BLOCK)
