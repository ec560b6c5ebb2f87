"""torch's process group as `clip/peers.py` describes it: sums and rows of all processes, with their gradients."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dassl_clip.clip.peers import Peers


def gathered(x: Tensor) -> list[Tensor]:
    """The tensors of all processes, which may differ in the number of rows."""
    size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    lengths = [int(count) for count in counts]
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths)]


def _packed(x: Tensor) -> Tensor:
    """A copy without gradients whose entries lie side by side, as nccl wants them."""
    return x.detach().clone(memory_format=torch.contiguous_format)


class Group(Peers):
    """The processes of torch's default group.

    Args:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes, with gradients."""
        return _Sum.apply(x)

    def largest(self, x: Tensor) -> Tensor:
        """The largest over processes, entry by entry."""
        x = _packed(x)
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes, with gradients."""
        return _Gather.apply(x)

    def first_row(self, rows: int) -> int:
        """Where the rows of this process begin among those of all."""
        counts = gathered(torch.tensor([rows]))
        return int(sum(count.item() for count in counts[: self.rank]))

    def total(self, own: Iterable[Tensor], count: int) -> Tensor:
        """The sum of parts in their order; each is sent by the process that has it."""
        own = list(own)  # made by all processes at once, before any waits
        mine, total = iter(own), own[0]
        for number in range(count):
            owner = next(rank for rank in range(self.size) if number < count * (rank + 1) // self.size)
            part = _packed(next(mine) if owner == self.rank else own[0])
            dist.broadcast(part, owner)
            total = total.add_(part) if number else part
        return total

    def joined(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """DistributedDataParallel over a module's learned parameters, as a function of the loss.

        The module itself stays as it is (names, state dict, methods): a wrapper of the parameters has the loss pass
        through, which is where it sees the graph, and reduces each gradient as soon as `backward` has made it.
        """
        learned = [p for p in module.parameters() if p.requires_grad]
        if "init_sync" in inspect.signature(DistributedDataParallel).parameters:
            return _Joined(learned)
        return DistributedDataParallel(_Passage(learned), find_unused_parameters=True)  # torch 2.4


class _Joined:
    """Parameters whose gradients become means over the processes.

    The first loss builds the wrapper, so the parameters must be alike by then (`make_alike`). Parameters that it does
    not depend on may stay without gradient, as in a process alone; only then is each graph searched for them.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.wrapper: DistributedDataParallel | None = None

    def __call__(self, loss: Tensor) -> Tensor:
        if self.wrapper is None:
            some_unused = not {id(p) for p in self.parameters} <= _leaves(loss)
            self.wrapper = DistributedDataParallel(
                _Passage(self.parameters), init_sync=False, find_unused_parameters=some_unused
            )
        return self.wrapper(loss)


class _Passage(nn.Module):
    """Holds parameters, and gives the loss back that it is called with."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__()
        self.learned = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _leaves(loss: Tensor) -> set[int]:
    """The ids of the tensors that a loss has gradients for."""
    found, seen, nodes = set(), set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        nodes += [following for following, _ in node.next_functions]
    return found


class _Sum(torch.autograd.Function):
    """All-reduce; what every process does with the sum is part of the gradient of each summand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = _packed(x)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = _packed(gradient)
        dist.all_reduce(gradient)
        return gradient


class _Gather(torch.autograd.Function):
    """All-gather of rows; the gradient of a row is the sum over the processes, which all have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = gathered(x)
        own = dist.get_rank()
        ctx.first, ctx.rows = sum(map(len, parts[:own])), len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = _packed(gradient)
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.rows]
