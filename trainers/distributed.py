"""Several processes that train or test one run together: the one place that knows the process group.

`torchrun` starts the processes and names them in the environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and
where they meet). Each computes on a GPU of its own (nccl), or all on the CPU (gloo). Without torchrun nothing is
started, and everything here is a process alone that costs nothing.

The main process, rank 0, alone writes files. What the processes tell each other is tensors, and plain values as JSON.
"""

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader

from dassl_clip.modeling.peers import ALONE, Peers

T = TypeVar("T")

TIMEOUT = "DASSL_CLIP_TIMEOUT"
SECONDS = 1800.0  # that a process waits for the others: long enough for rank 0 to write a large file
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "nccl", "gloo", "recvvalue failed")
ROWS_AT_ONCE = 65536  # of a memory-mapped array
HOW = "torchrun --nproc_per_node N train.py ..."


class _State:
    peers: Peers = ALONE
    store: dist.Store | None = None
    started = 0


# ------------------------------------------------------------------------------------------------ start and stop


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(use_cuda: bool) -> None:
    """Join the other processes of torchrun; without torchrun nothing happens.

    Args:
        use_cuda: Whether the run may use GPUs; each process then takes the one of its `LOCAL_RANK`.

    Raises:
        ValueError: The environment is not whole, or there are more processes than GPUs.
        RuntimeError: The processes did not find each other.
    """
    if not launched() or _State.store is not None:
        return
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"this is process {rank} of {size}, but the environment lacks {', '.join(missing)}; start with {HOW}"
        )
    on_gpus = use_cuda and torch.cuda.is_available()
    if on_gpus:
        local, there = _number("LOCAL_RANK", rank), torch.cuda.device_count()
        wanted = _number("LOCAL_WORLD_SIZE", size)
        if max(wanted, local + 1) > there:
            raise ValueError(
                f"torchrun started {wanted} processes on this machine, which shows {there} GPU{'s' * (there != 1)}; "
                f"give --nproc_per_node {there}, or USE_CUDA False to compute on the CPU"
            )
        torch.cuda.set_device(local)
    limit = timedelta(seconds=_timeout())
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    store = dist.PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{_State.started}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    _State.store, _State.peers = dist.PrefixStore("dassl_clip", store), Group(rank, size)
    _State.started += 1


def stop() -> None:
    """Leave the group after all processes have come here; without a group nothing happens."""
    if _State.store is None:
        return
    barrier()
    dist.destroy_process_group()
    _State.store, _State.peers = None, ALONE


@contextlib.contextmanager
def joined(use_cuda: bool) -> Iterator[None]:
    """`start` before the block and `stop` after it; after an error in the block, nobody is waited for."""
    start(use_cuda)
    yield
    stop()


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ValueError(f"the environment variable {name} is {text!r}; torchrun sets it to a number: {HOW}")
    return int(text)


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"the environment variable {TIMEOUT} is {text!r}; expected a positive number of seconds")
    return seconds


# --------------------------------------------------------------------------------------------------- who is who


def peers() -> Peers:
    """The processes of this run, for functions that take them; a process alone if there is no group."""
    return _State.peers


def rank() -> int:
    """Number of this process, from 0."""
    return _State.peers.rank if _State.store is not None else _number("RANK") if launched() else 0


def world_size() -> int:
    """Number of processes in the group."""
    return _State.peers.size


def is_main() -> bool:
    """Whether this process writes files: rank 0, or a process alone."""
    return rank() == 0


def first_to(what: str) -> bool:
    """Whether this process is the first of all that comes to say so; a process alone always is.

    An error that all processes have, or that ends them one after the other, is thus told once.
    """
    if _State.store is None:
        return is_main()
    try:
        return _State.store.add(what, 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


def lost_contact(error: BaseException) -> str:
    """A sentence, if an error of torch says that another process is gone or does not answer; otherwise ""."""
    text = str(error).lower()
    if world_size() == 1 or not isinstance(error, RuntimeError) or not any(sign in text for sign in LOST):
        return ""
    return (
        f"process {rank()} of {world_size()} lost contact with another one, which ended or did not answer for "
        f"{_timeout():g} s ({TIMEOUT}); the same command goes on from the last checkpoint"
    )


# ------------------------------------------------------------------------------------------------ what they tell


def barrier() -> None:
    """Wait until all processes are here."""
    peers().sum(torch.zeros(1))


def broadcast(x: Tensor) -> Tensor:
    """The main process's tensor, everywhere; shapes and types must agree."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.broadcast(x, 0)
    return x


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the main process, which alone calls it: a plain value that JSON can hold."""
    if world_size() == 1:
        return make()
    text = json.dumps(make()).encode() if is_main() else b""
    length = broadcast(torch.tensor([len(text)]))
    content = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(int(length)).byte()
    return json.loads(bytes(broadcast(content).tolist()))


def announced(make: Callable[..., T]) -> Callable[..., T]:
    """In the main process: `make`, which the others join by `follow` whenever it is called, with the same arguments."""

    def together(*given: Any) -> T:
        from_main(lambda: given)
        return make(*given)

    return make if world_size() == 1 else together


def follow(make: Callable[..., Any]) -> None:
    """In the other processes: call `make` whenever the main process does, until that calls `announce_end`."""
    while (given := from_main(tuple)) is not None:
        make(*given)


def announce_end() -> None:
    """In the main process: what `announced` gave is not called any more."""
    from_main(lambda: None)


def main_array(own: Tensor | None) -> Tensor:
    """The main process's array `[N, ...]`, float32, on the CPU; no copies travel if every process has it.

    Args:
        own: The array, or in other processes None if they do not have the same one.
    """
    if all(gather_values(own is not None)):
        return own
    shape = from_main(lambda: list(own.shape))
    values = own if is_main() else torch.empty(shape)
    for part in values.split(ROWS_AT_ONCE):
        dist.broadcast(part if not is_main() else part.contiguous(), 0)
    return values


def gather_values(value: Any) -> list[Any]:
    """The plain values (of JSON) of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    parts = _gather(torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8))
    return [json.loads(bytes(part.tolist())) for part in parts]


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """The rows `[N, ...]` of all processes in the order of their ranks, any number from each; without gradients."""
    return peers().gather(x)


def _gather(x: Tensor) -> list[Tensor]:
    """The tensors of all processes, which may differ in the number of rows."""
    size = world_size()
    if size == 1:
        return [x]
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    lengths = [int(count) for count in counts]
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths)]


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
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes, with gradients."""
        return _Gather.apply(x)

    def first_row(self, rows: int) -> int:
        """Where the rows of this process begin among those of all."""
        counts = _gather(torch.tensor([rows]))
        return int(sum(count.item() for count in counts[: self.rank]))

    def total(self, own: Iterable[Tensor], count: int) -> Tensor:
        """The sum of parts in their order; each is sent by the process that has it."""
        own = list(own)  # made by all processes at once, before any waits
        mine, total = iter(own), own[0]
        for number in range(count):
            owner = next(rank for rank in range(self.size) if number < count * (rank + 1) // self.size)
            part = next(mine).clone() if owner == self.rank else torch.empty_like(own[0])
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
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


class _Gather(torch.autograd.Function):
    """All-gather of rows; the gradient of a row is the sum over the processes, which all have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = _gather(x)
        own = dist.get_rank()
        ctx.first, ctx.rows = sum(map(len, parts[:own])), len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.rows]


# ------------------------------------------------------------------------------------------------------- loaders


class OwnRows(BatchSampler):
    """The rows of each global batch that belong to this process.

    The order of images is the main process's, the same stream that a process alone draws; so the batches do not depend
    on the number of processes.

    Args:
        batches: torch's batch sampler of the global batches.
    """

    def __init__(self, batches: BatchSampler):
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.images = len(batches.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        order = broadcast(torch.tensor(list(self.sampler), dtype=torch.int64))
        for batch in order.split(self.batch_size):
            if len(batch) == self.batch_size or (len(batch) and not self.drop_last):
                yield batch[peers().own(len(batch))].tolist()

    def rows(self, number: int) -> int:
        """Images in the global batch of this number (of a whole epoch, from 0)."""
        return min(self.batch_size, self.images - number * self.batch_size)


def own_rows(loader: DataLoader) -> DataLoader:
    """A training loader that reads this process's rows of each global batch; alone, the loader itself.

    Raises:
        ValueError: The batch size is not a multiple of the number of processes, or there are fewer images than those.
    """
    size = world_size()
    if size == 1:
        return loader
    batches = loader.batch_sampler
    if batches.batch_size % size:
        raise ValueError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE is {batches.batch_size}, the number of images of all {size} processes "
            f"together; it must be a multiple of {size}, such as {batches.batch_size // size * size + size}"
        )
    if len(batches.sampler) < size:
        raise ValueError(
            f"there are {len(batches.sampler)} training images for {size} processes; start at most as many as images"
        )
    return _like(loader, OwnRows(batches))


def own_batches(loader: DataLoader) -> DataLoader:
    """A test loader of every `world_size()`-th batch, from number `rank()` on; alone, the loader itself.

    Whole batches are dealt out, so that each image is computed in the same batch as by a process alone. A loader with
    fewer batches than processes stays whole: then all of them compute all of it.
    """
    if not is_dealt(loader):
        return loader
    order = broadcast(torch.tensor(list(loader.batch_sampler.sampler), dtype=torch.int64))
    batches = [part.tolist() for part in order.split(loader.batch_sampler.batch_size)]
    return _like(loader, batches[rank() :: world_size()])


def dealt(own: Iterator[tuple[Tensor, ...]], loader: DataLoader) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of rows, of all batches of a loader in their order, from those that each process made of its own.

    Args:
        own: What this process made of each batch of `own_batches(loader)`.
        loader: The loader.

    Yields:
        What was made of as many batches as there are processes, rows in the order of the loader.

    Raises:
        ElsewhereError: Another process had an error; in that one, the error itself.
    """
    if not is_dealt(loader):
        yield from own
        return
    last: tuple[Tensor, ...] = ()
    for _ in range(-(-len(loader) // world_size())):
        fault = None
        try:
            made = next(own, None)
        except Exception as error:
            fault = error
        faults = gather_values("" if fault is None else f"{fault or type(fault).__name__}")
        if fault is not None:
            raise fault
        if any(faults):
            raise ElsewhereError(next(text for text in faults if text))
        last = tuple(rows[:0] for rows in last) if made is None else made
        yield tuple(gather_rows(rows) for rows in last)


class ElsewhereError(RuntimeError):
    """An error of another process; the message is its own."""

    from_user = True


def is_dealt(loader: DataLoader) -> bool:
    """Whether `own_batches` gives each process a part of the loader."""
    return 1 < world_size() <= len(loader)


def _like(loader: DataLoader, batches: Any) -> DataLoader:
    """A loader of the same kind and images, with other batches."""
    options: dict[str, Any] = {"seed": loader.seed} if hasattr(loader, "seed") else {}
    if not hasattr(loader, "seed"):
        options["worker_init_fn"] = loader.worker_init_fn
    if loader.num_workers:
        options |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    return type(loader)(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
        **options,
    )


@torch.no_grad()
def make_alike(module: nn.Module) -> None:
    """Give all processes the main one's parameters and buffers, in place."""
    if world_size() > 1:
        for value in module.state_dict().values():
            value.copy_(broadcast(value))


def check_alike(modules: Iterable[nn.Module]) -> None:
    """Make sure that the learned parameters of all processes are still the same.

    Raises:
        RuntimeError: They have gone apart: some step did not pass through `optimise`.
    """
    if world_size() == 1:
        return
    sums = torch.stack([p.detach().double().sum() for module in modules for p in module.parameters()])
    spread = peers().largest(sums) + peers().largest(-sums)
    if bool((spread.abs() > 1e-6 * (1 + sums.abs())).any()):
        raise RuntimeError(
            "the learned parameters differ between the processes: every step of a trainer that runs on several must "
            "pass through `optimise`"
        )
