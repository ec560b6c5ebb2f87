"""Processes that work on one batch or one set together, each with some of its rows: what pure functions need of them.

`Peers` itself is a process alone, for which all of this costs nothing. `trainers/distributed.py` joins several.

A loss is a mean over rows. Each process forms the mean over its own rows, times `share`; the loss that is meant is the
mean over the processes of these numbers, and the gradient of a parameter the mean over the processes of theirs (as
DistributedDataParallel forms it). `sum` and `gather` carry gradients in that sense: what a process does with the rows
of another is part of the gradient of those rows.
"""

from collections.abc import Callable

from torch import Tensor, nn


class Peers:
    """A process alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def own(self, rows: int) -> slice:
        """Which of `rows` rows are this process's; the parts differ by one row at most and follow one another."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def share(self, own: int, rows: int) -> float:
        """The factor on the mean over `own` rows that makes the mean over processes the mean over all `rows`."""
        return own * self.size / rows

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes of tensors of one shape, with gradients; the same numbers everywhere."""
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The largest over processes, entry by entry, of tensors of one shape, without gradients."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The rows `[N, ...]` of all processes, in the order of their ranks, with gradients."""
        return x

    def first_row(self, rows: int) -> int:
        """Where the rows of this process begin among those of all, if it has `rows` of them."""
        return 0

    def joined(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What a loss passes through before `backward`, so that the gradients of a module are means over processes."""
        return _unchanged


def _unchanged(loss: Tensor) -> Tensor:
    return loss


ALONE = Peers()
