"""What two processes make of their parts, written to a file by the main one; `test_pieces.py` compares.

`torchrun ... pieces.py FILE`: the sizes are uneven on purpose (three rows in the first process, four in the second).
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dassl_clip.clip.losses import nt_xent
from dassl_clip.engine import distributed, sharding
from dassl_clip.engine.data import EpochBatches
from dassl_clip.engine.distributed import gather_rows, gather_values
from dassl_clip.engine.sharding import ElsewhereError

distributed.start(use_cuda=False)
rank, found = distributed.rank(), {}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss of rows of all processes, and its gradients as means over processes; none for a parameter without use.
layer = nn.ModuleDict({"used": nn.Linear(5, 3), "norm": nn.BatchNorm1d(3), "idle": nn.Linear(5, 2)}).double()
with torch.no_grad():
    layer["used"].weight.copy_(draw(3, 5, seed=5) + rank)  # the same after the broadcast
    layer["used"].bias.zero_()
distributed.broadcast_parameters(layer)
rows = distributed.shard(7)
a, b = (gather_rows(layer["used"](draw(7, 5, seed=seed)[rows])) for seed in (1, 2))
loss = (rows.stop - rows.start) * 2 / 7 * nt_xent(layer["norm"](a), b, 0.3)
loss.backward()
distributed.average_gradients(layer.parameters())
found["loss"] = distributed.total(loss.detach() / 2)
found["gradients"] = {name: p.grad for name, p in layer.named_parameters()}
found["norm"] = dict(layer["norm"].state_dict())

# Exchange of rows, of none as well, and of plain values.
found["rows"] = [gather_rows(x) for x in (torch.arange(7)[rows], torch.ones(2 * rank, 3) > 0)]
found["values"] = gather_values({"rank": rank, "text": "å" * (1 + rank)})
found["from main"] = distributed.from_main(lambda: ["only", rank, 0.1])
found["array"] = distributed.main_array(torch.arange(12.0).view(6, 2) if rank == 0 else None)

# Loaders: own rows of every training batch; whole test batches, the last one partial.
images = TensorDataset(torch.arange(23))
for drop in (True, False):
    generator = torch.Generator()
    batches = EpochBatches(RandomSampler(images, generator=generator), generator, 4, drop)
    batches.start(7)
    mine = [batch.tolist() for (batch,) in DataLoader(images, batch_sampler=batches)]
    found[f"own rows {drop}"] = list(zip(*gather_values(mine)))
    found[f"own lengths {drop}"] = gather_values([len(batches), len(mine)])
loader = DataLoader(images, batch_size=4)
mine = ((batch, 2 * batch) for (batch,) in sharding.shard_batches(loader))
found["merged"] = [torch.cat(part) for part in zip(*sharding.merge_shards(mine, loader))]
small = DataLoader(TensorDataset(torch.arange(3)), batch_size=4)
found["few"] = [batch.tolist() for (batch,) in sharding.shard_batches(small)]


def broken():
    yield (torch.zeros(4),)
    if rank == 1:
        raise ValueError("the second process stumbled")
    yield (torch.zeros(4),)


try:
    list(sharding.merge_shards(broken(), loader))
except (ValueError, ElsewhereError) as error:
    found["errors"] = gather_values([type(error).__name__, str(error)])
try:
    layer["used"].bias.data.add_(rank)
    distributed.check_same_parameters([layer])
except RuntimeError as error:
    found["diverged"] = gather_values(str(error))

if distributed.is_main():
    torch.save(found, sys.argv[1])
distributed.stop()
