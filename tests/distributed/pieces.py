"""What two processes make of their parts, written to a file by the main one; `test_pieces.py` compares.

`torchrun ... pieces.py FILE`: the sizes are uneven on purpose (three rows in the first process, four in the second).
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dassl_clip.clip.losses import nt_xent
from dassl_clip.clip.rows import Cosines
from dassl_clip.engine import distributed
from dassl_clip.engine import sharding as dealing
from dassl_clip.engine.data import EpochBatches
from dassl_clip.engine.distributed import gather_rows, gather_values
from dassl_clip.engine.sharding import ElsewhereError
from dassl_clip.trainers.gopro.model import BatchNorm
from dassl_clip.trainers.inmap.labels import PseudoLabels, sinkhorn_potentials, solve_vision_proxy

distributed.start(use_cuda=False)
peers, found = distributed.peers(), {}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The contrast of rows of all processes: loss and gradients as of the mean over processes.
a, b = draw(7, 5, seed=1), draw(7, 5, seed=2)
rows = peers.own(7)
own = [x[rows].clone().requires_grad_() for x in (a, b)]
loss = peers.share(len(own[0]), 7) * nt_xent(*own, 0.3, peers)
loss.backward()
found["contrast"] = peers.sum(loss.detach()) / peers.size
found["contrast gradients"] = [gather_rows(x.grad) / peers.size for x in own]

# Batch norm over the rows of all: values, gradients, running statistics.
norm = BatchNorm(5, peers).double()
with torch.no_grad():
    norm.weight.copy_(draw(5, seed=3))
x = a[rows].clone().requires_grad_()
weights = draw(7, 5, seed=4)
y = norm(x)
(y * weights[rows]).sum().mul(peers.size).backward()
found["norm"] = gather_rows(y.detach())
found["norm gradients"] = [
    gather_rows(x.grad) / peers.size,
    *(peers.sum(p.grad) / peers.size for p in norm.parameters()),
]
found["norm state"] = dict(norm.state_dict())

# Gradients through DistributedDataParallel: means over processes; none for a parameter that is not used.
layer = nn.ModuleDict({"used": nn.Linear(5, 2), "idle": nn.Linear(5, 2)}).double()
with torch.no_grad():
    layer["used"].weight.copy_(draw(2, 5, seed=5) + peers.rank)  # made alike below
    layer["used"].bias.zero_()
distributed.make_alike(layer)
joined = peers.joined(layer)
for _ in range(2):
    layer.zero_grad()
    loss = peers.share(len(a[rows]), 7) * layer["used"](a[rows]).square().mean()
    joined(loss).backward()
found["joined"] = {name: p.grad for name, p in layer.named_parameters()}

# Exchange of rows, of none as well, and of plain values.
found["rows"] = [gather_rows(x) for x in (torch.arange(7)[rows], torch.ones(2 * peers.rank, 3) > 0)]
found["values"] = gather_values({"rank": peers.rank, "text": "å" * (1 + peers.rank)})
found["from main"] = distributed.from_main(lambda: ["only", peers.rank, 0.1])
found["largest"] = peers.largest(torch.tensor([1.0 + peers.rank, -float("inf")]))
found["array"] = distributed.main_array(torch.arange(12.0).view(6, 2) if peers.rank == 0 else None)

# Loaders: own rows of every global batch; whole batches dealt out, the last one partial.
images = TensorDataset(torch.arange(23))
for drop in (True, False):
    generator = torch.Generator()
    batches = EpochBatches(RandomSampler(images, generator=generator), generator, 4, drop)
    batches.start(7)
    mine = [batch.tolist() for (batch,) in DataLoader(images, batch_sampler=batches)]
    found[f"own rows {drop}"] = list(zip(*gather_values(mine)))
    found[f"own lengths {drop}"] = gather_values([len(batches), len(mine)])
loader = DataLoader(images, batch_size=4)
mine = ((batch, 2 * batch) for (batch,) in dealing.own_batches(loader))
found["dealt"] = [torch.cat(part) for part in zip(*dealing.dealt(mine, loader))]
small = DataLoader(TensorDataset(torch.arange(3)), batch_size=4)
found["few"] = [batch.tolist() for (batch,) in dealing.own_batches(small)]


def broken():
    yield (torch.zeros(4),)
    if peers.rank == 1:
        raise ValueError("the second process stumbled")
    yield (torch.zeros(4),)


try:
    list(dealing.dealt(broken(), loader))
except (ValueError, ElsewhereError) as error:
    found["errors"] = gather_values([type(error).__name__, str(error)])
try:
    layer["used"].bias.data.add_(peers.rank)
    distributed.check_alike([layer])
except RuntimeError as error:
    found["apart"] = gather_values(str(error))

# InMaP on parts of 1100 and of 3 images, in float32.
for count in (1100, 3):
    features = nn.functional.normalize(draw(count, 8, seed=8).float(), dim=1)
    text = nn.functional.normalize(draw(8, 4, seed=9).float(), dim=0)
    group = peers if len(peers.parts(count)) > 1 else type(peers).__mro__[1]()
    mine = group.own_parts(count)
    part = features[mine[0].start : mine[-1].stop]
    scores = Cosines(part, text)
    potentials = sinkhorn_potentials(scores, 0.1, gamma=0.5, peers=group)
    labels = PseudoLabels(scores, 0.1, potentials)
    for solver, steps in (("fast", None), ("authors", 50)):
        solution = solve_vision_proxy(part, text, labels, 0.4, solver=solver, steps=steps, peers=group)
        found[f"inmap {count} {solver}"] = [potentials, solution.proxy, torch.tensor(solution[1:4])]
        found[f"inmap {count} {solver} apart"] = peers.largest(solution.proxy) + peers.largest(-solution.proxy)

if distributed.is_main():
    torch.save(found, sys.argv[1])
distributed.stop()
