"""Processes that work on one batch or one set together, each with some of its rows: what pure functions need of them.

`Peers` itself is a process alone, for which all of this costs nothing. `engine/distributed.py` joins several.

A loss is a mean over rows. Each process forms the mean over its own rows, times `share`; the loss that is meant is the
mean over the processes of these numbers, and the gradient of a parameter the mean over the processes of theirs (as
DistributedDataParallel forms it). `sum` and `gather` carry gradients in that sense: what a process does with the rows
of another is part of the gradient of those rows.

A solver that takes many steps turns the last digits of a sum into other results. Where that matters, rows are summed in
parts that depend on their number alone, and the parts in their order; each process has whole parts. Such sums have the
same digits for any number of processes.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

PART_ROWS = 512  # a part has at least so many rows, if there are as many
MOST_PARTS = 16


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

    def parts(self, rows: int) -> list[slice]:
        """The parts, one after the other, that `rows` rows of all processes are summed in."""
        count = min(max(rows // PART_ROWS, 1), MOST_PARTS)
        return [slice(rows * part // count, rows * (part + 1) // count) for part in range(count)]

    def own_parts(self, rows: int) -> list[slice]:
        """The parts that are this process's."""
        parts = self.parts(rows)
        return parts[self.own(len(parts))]

    def total(self, own: Iterable[Tensor], count: int) -> Tensor:
        """The sum of `count` parts in their order, each a tensor of one shape, without gradients.

        Args:
            own: Those of this process, from `own_parts`; at least one.
            count: Parts of all processes together.
        """
        parts = iter(own)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def joined(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What a loss passes through before `backward`, so that the gradients of a module are means over processes.

        Asked for before that loss is computed.
        """
        return _unchanged


def _unchanged(loss: Tensor) -> Tensor:
    return loss


ALONE = Peers()
