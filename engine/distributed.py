"""Several processes that train or test one run together: the one place that knows torch's process group.

`torchrun` starts the processes and names them in the environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and
where they meet). Each computes on a GPU of its own (nccl), or all on the CPU (gloo). Without torchrun nothing is
started, and everything here costs nothing. `sharding.py` says which images each process reads.

The main process, rank 0, alone writes files.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dassl_clip.results.errors import UserError

T = TypeVar("T")

TIMEOUT = "DASSL_CLIP_TIMEOUT"
SECONDS = 1800.0  # that a process waits for the others: long enough for rank 0 to write a large file
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "nccl", "gloo", "recvvalue failed")
ROWS_AT_ONCE = 65536  # of a memory-mapped array
HOW = "torchrun --nproc_per_node N train.py ..."


class _State:
    store: Store | None = None  # None: no process group
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
        UserError: The environment is not whole, or there are more processes than GPUs.
        RuntimeError: The processes did not find each other.
    """
    if not launched() or _State.store is not None:
        return
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"this is process {rank} of {size}, but the environment lacks {', '.join(missing)}; start with {HOW}"
        )
    on_gpus = use_cuda and torch.cuda.is_available()
    if on_gpus:
        local, gpus = _number("LOCAL_RANK", rank), torch.cuda.device_count()
        wanted = _number("LOCAL_WORLD_SIZE", size)
        if max(wanted, local + 1) > gpus:
            raise UserError(
                f"torchrun started {wanted} processes on this machine, which shows {gpus} GPU{'s' * (gpus != 1)}; "
                f"give --nproc_per_node {gpus}, or USE_CUDA False to compute on the CPU"
            )
        torch.cuda.set_device(local)
    limit = timedelta(seconds=_timeout())
    store, rank, size = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    store = PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{_State.started}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    _State.store = PrefixStore("dassl_clip", store)
    _State.started += 1


def stop() -> None:
    """Leave the group after all processes have come here; without a group nothing happens."""
    if _State.store is None:
        return
    barrier()
    dist.destroy_process_group()
    _State.store = None


@contextlib.contextmanager
def process_group(use_cuda: bool) -> Iterator[None]:
    """`start` before the block and `stop` after it; after an error in the block, nobody is waited for."""
    start(use_cuda)
    yield
    stop()


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the environment variable {name} is {text!r}; torchrun sets it to a number: {HOW}")
    return int(text)


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"the environment variable {TIMEOUT} is {text!r}; expected a positive number of seconds")
    return seconds


# ------------------------------------------------------------------------------------------------- who is who


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _State.store is not None else _number("RANK") if launched() else 0


def world_size() -> int:
    """Number of processes in the group."""
    return dist.get_world_size() if _State.store is not None else 1


def is_main() -> bool:
    """Whether this process writes files: rank 0, or a process alone."""
    return rank() == 0


def first_to(what: str) -> bool:
    """Whether this process is the first of all that comes to say so; a process alone always is.

    An error that all processes have, or that ends them one after the other, is thus printed once. If the main process
    has ended, and with it the store, it (or torchrun for it) has printed why on its machine; elsewhere the first does.
    """
    if _State.store is None:
        return is_main()
    try:
        return _State.store.add(what, 1) == 1
    except RuntimeError:
        return _number("GROUP_RANK") > 0 and _number("LOCAL_RANK") == 0


def lost_contact(error: BaseException) -> str:
    """A sentence, if an error of torch says that another process is gone or does not answer; otherwise ""."""
    text = str(error).lower()
    if world_size() == 1 or not isinstance(error, RuntimeError) or not any(sign in text for sign in LOST):
        return ""
    return (
        f"process {rank()} of {world_size()} lost contact with another one, which ended or did not answer for "
        f"{_timeout():g} s ({TIMEOUT}); the same command resumes from the last checkpoint"
    )


def shard(rows: int) -> slice:
    """Which of `rows` rows are this process's; shards differ by one row at most and follow one another."""
    return slice(rows * rank() // world_size(), rows * (rank() + 1) // world_size())


# ------------------------------------------------------------------------------------------------- plain values


def barrier() -> None:
    """Wait until all processes are here."""
    total(torch.zeros(1))


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the main process, which alone calls it: a plain value."""
    if world_size() == 1:
        return make()
    values = [make() if is_main() else None]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return cast("T", values[0])


def gather_values(value: T) -> list[T]:
    """The plain values of all processes, in the order of their ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def announced(make: Callable[..., T]) -> Callable[..., T]:
    """In the main process: `make`, which the others join by `follow` whenever it is called, with the same arguments."""

    def together(*args: Any) -> T:
        from_main(lambda: args)
        return make(*args)

    return make if world_size() == 1 else together


def follow(make: Callable[..., Any]) -> None:
    """In the other processes: call `make` whenever the main process does, until that calls `announce_end`."""
    args: tuple[Any, ...] | None
    while (args := from_main(tuple)) is not None:
        make(*args)


def announce_end() -> None:
    """In the main process: what `announced` gave is not called any more."""
    from_main(lambda: None)


# ------------------------------------------------------------------------------------------------------ tensors


def total(x: Tensor) -> Tensor:
    """The sum over processes of tensors of one shape, without gradients."""
    if world_size() == 1:
        return x
    x = _packed(x)
    dist.all_reduce(x)
    return x


def broadcast(x: Tensor) -> Tensor:
    """The main process's tensor, everywhere; shapes and types must agree."""
    if world_size() == 1:
        return x
    x = _packed(x)
    dist.broadcast(x, 0)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """The rows `[N, ...]` of all processes in the order of their ranks, any number from each; with gradients.

    Each process computes the same loss of all rows. The gradient of a row is then the sum over the processes, and the
    mean over processes of a parameter's gradients (`average_gradients`) is the gradient of that loss.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """`torch.distributed.nn.functional.all_gather` (which torch has deprecated) for any number of rows of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        lengths = gather_values(len(x))
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        ctx.first, ctx.rows = sum(lengths[: rank()]), len(x)
        return torch.cat([part[:length] for part, length in zip(parts, lengths)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)[ctx.first : ctx.first + ctx.rows]


def _packed(x: Tensor) -> Tensor:
    """A copy without gradients whose entries lie side by side, as nccl wants them."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def main_array(own: Tensor | None) -> Tensor:
    """The main process's array `[N, ...]`, float32, on the CPU; no copies travel if every process has it.

    Args:
        own: The array, or in other processes None if they do not have the same one.
    """
    everywhere = all(gather_values(own is not None))
    if own is not None and everywhere:
        return own
    shape = from_main(lambda: [] if own is None else list(own.shape))
    values = own if own is not None and is_main() else torch.empty(shape)
    for part in values.split(ROWS_AT_ONCE):
        dist.broadcast(part if not is_main() else part.contiguous(), 0)
    return values


# ---------------------------------------------------------------------------------------------- learned parameters


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Give all processes the main one's parameters and buffers, in place."""
    if world_size() > 1:
        for value in module.state_dict().values():
            value.copy_(broadcast(value))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make each gradient the mean over the processes, in place; all have one for the same parameters."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    means = total(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def check_same_parameters(modules: Iterable[nn.Module]) -> None:
    """Make sure that the learned parameters of all processes are still the same.

    Raises:
        RuntimeError: They have diverged: some step did not pass through `optimise`.
    """
    if world_size() == 1:
        return
    sums = torch.stack([p.detach().double().sum() for module in modules for p in module.parameters()])
    differ = (sums - broadcast(sums)).abs() > 1e-6 * (1 + sums.abs())
    if any(gather_values(bool(differ.any()))):
        raise RuntimeError(
            "the learned parameters differ between the processes: every step of a trainer that runs on several must "
            "pass through `optimise`"
        )
