"""The parts that runs of several processes are made of, against one process, in float64 where gradients are compared.

Covers: a contrast and a batch norm over the rows of all processes with their gradients, parameters without one,
exchange of rows and values, own rows of a training stream, whole test batches that are shared, errors of one process,
parameters that diverge.
"""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dassl_clip.clip.losses import nt_xent

from .conftest import HERE, finish


@pytest.fixture(scope="module")
def found(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    codes, out, err = finish(ranks([HERE / "pieces.py", folder / "found.pt"], folder))
    assert codes == [0, 0], out + err
    return torch.load(folder / "found.pt", weights_only=True)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_loss_of_all_rows_and_its_gradients(found):
    """Also of a batch norm over them, whose running statistics are those of the whole batch."""
    layer = nn.ModuleDict({"used": nn.Linear(5, 3), "norm": nn.BatchNorm1d(3)}).double()
    with torch.no_grad():
        layer["used"].weight.copy_(draw(3, 5, seed=5))
        layer["used"].bias.zero_()
    a, b = (layer["used"](draw(7, 5, seed=seed)) for seed in (1, 2))
    loss = nt_xent(layer["norm"](a), b, 0.3)
    loss.backward()
    close(found["loss"], loss.detach())
    for name, parameter in layer.named_parameters():
        close(found["gradients"][name], parameter.grad)
    assert found["gradients"]["idle.weight"] is None and found["gradients"]["idle.bias"] is None
    for name, value in layer["norm"].state_dict().items():
        close(found["norm"][name], value)


def test_what_is_exchanged(found):
    numbers, flags = found["rows"]
    assert numbers.tolist() == list(range(7)) and flags.dtype == torch.bool and list(flags.shape) == [2, 3]
    assert found["values"] == [{"rank": 0, "text": "å"}, {"rank": 1, "text": "åå"}]
    assert found["from main"] == ["only", 0, 0.1]
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


def test_batches_are_merged_in_order(found):
    numbers, doubled = found["merged"]
    assert numbers.tolist() == list(range(23)) and doubled.tolist() == list(range(0, 46, 2))
    assert found["few"] == [[0, 1, 2]]  # fewer batches than processes: both have all


def test_an_error_of_one_process_is_one_of_all(found):
    (first, sentence), (second, own) = found["errors"]
    assert (first, second) == ("ElsewhereError", "ValueError") and sentence == own == "the second process stumbled"
    assert all("pass through `optimise`" in text for text in found["diverged"])
