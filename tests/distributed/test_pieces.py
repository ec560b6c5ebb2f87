"""The parts that runs of several processes are made of, against one process, in float64 where gradients are compared.

Covers: the contrast over the rows of all processes with its gradients, batch norm over them (values, gradients, running
statistics), DistributedDataParallel's gradients and parameters without one, exchange of rows and values, own rows of a
training stream, whole test batches dealt out, errors of one process, Sinkhorn and both InMaP solvers.
"""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dassl_clip.clip.losses import nt_xent
from dassl_clip.clip.rows import Cosines
from dassl_clip.trainers.inmap.labels import PseudoLabels, sinkhorn_potentials, solve_vision_proxy

from .conftest import HERE, finish, start


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    code, out, err = finish(start([str(HERE / "pieces.py"), str(folder / "found.pt")], 2, folder))
    assert code == 0, out + err
    return torch.load(folder / "found.pt", weights_only=True)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_contrast_and_its_gradients(found):
    a, b = (draw(7, 5, seed=seed).requires_grad_() for seed in (1, 2))
    loss = nt_xent(a, b, 0.3)
    loss.backward()
    close(found["contrast"], loss.detach())
    for ours, theirs in zip(found["contrast gradients"], (a.grad, b.grad)):
        close(ours, theirs)


def test_batch_norm(found):
    norm = nn.BatchNorm1d(5).double()
    with torch.no_grad():
        norm.weight.copy_(draw(5, seed=3))
    x = draw(7, 5, seed=1).requires_grad_()
    y = norm(x)
    (y * draw(7, 5, seed=4)).sum().backward()
    close(found["norm"], y.detach())
    for ours, theirs in zip(found["norm gradients"], (x.grad, *(p.grad for p in norm.parameters()))):
        close(ours, theirs)
    assert found["norm state"].keys() == norm.state_dict().keys()
    for name, value in norm.state_dict().items():
        close(found["norm state"][name], value)


def test_gradients_are_means_over_processes(found):
    layer = nn.Linear(5, 2).double()
    with torch.no_grad():
        layer.weight.copy_(draw(2, 5, seed=5))
        layer.bias.zero_()
    layer(draw(7, 5, seed=1)).square().mean().backward()
    close(found["joined"]["used.weight"], layer.weight.grad)
    close(found["joined"]["used.bias"], layer.bias.grad)
    assert found["joined"]["idle.weight"] is None and found["joined"]["idle.bias"] is None


def test_what_is_exchanged(found):
    numbers, flags = found["rows"]
    assert numbers.tolist() == list(range(7)) and flags.dtype == torch.bool and list(flags.shape) == [2, 3]
    assert found["values"] == [{"rank": 0, "text": "å"}, {"rank": 1, "text": "åå"}]
    assert found["from main"] == ["only", 0, 0.1]
    assert found["largest"].tolist() == [2.0, -float("inf")]
    assert torch.equal(found["array"], torch.arange(12.0).view(6, 2))


@pytest.mark.parametrize("drop", [True, False])
def test_own_rows_are_the_stream_of_one_process(found, drop):
    images = TensorDataset(torch.arange(23))
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(
        images, batch_size=4, drop_last=drop, sampler=RandomSampler(images, generator=generator), generator=generator
    )
    whole = [batch.tolist() for (batch,) in loader]
    assert [[*first, *second] for first, second in found[f"own rows {drop}"]] == whole
    assert found[f"own lengths {drop}"] == [[len(whole)] * 2] * 2
    assert [len(first) for first, _ in found[f"own rows {drop}"]] == [2] * 5 + [1] * (not drop)


def test_batches_are_dealt_out_in_order(found):
    numbers, doubled = found["dealt"]
    assert numbers.tolist() == list(range(23)) and doubled.tolist() == list(range(0, 46, 2))
    assert found["few"] == [[0, 1, 2]]  # fewer batches than processes: both have all


def test_an_error_of_one_process_is_one_of_all(found):
    (first, sentence), (second, own) = found["errors"]
    assert (first, second) == ("ElsewhereError", "ValueError") and sentence == own == "the second process stumbled"
    assert all("pass through `optimise`" in text for text in found["apart"])


@pytest.mark.parametrize("count", [1100, 3])
@pytest.mark.parametrize("solver, steps", [("fast", None), ("authors", 50)])
def test_inmap_has_the_same_digits(found, count, solver, steps):
    features = nn.functional.normalize(draw(count, 8, seed=8).float(), dim=1)
    text = nn.functional.normalize(draw(8, 4, seed=9).float(), dim=0)
    scores = Cosines(features, text)
    potentials = sinkhorn_potentials(scores, 0.1, gamma=0.5)
    labels = PseudoLabels(scores, 0.1, potentials)
    solution = solve_vision_proxy(features, text, labels, 0.4, solver=solver, steps=steps)
    ours, proxy, numbers = found[f"inmap {count} {solver}"]
    close(ours, potentials)
    torch.testing.assert_close(proxy, solution.proxy, rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers, torch.tensor(solution[1:4]), rtol=1e-6, atol=1e-7)
    assert not found[f"inmap {count} {solver} apart"].any()
