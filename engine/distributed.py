"""Several processes that train or test one run together: the one place that knows the process group.

`torchrun` starts the processes and names them in the environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and
where they meet). Each computes on a GPU of its own (nccl), or all on the CPU (gloo). Without torchrun nothing is
started, and everything here is a process alone that costs nothing. `group.py` has the sums and gradients, `dealing.py`
the images that each process reads.

The main process, rank 0, alone writes files. What the processes tell each other is tensors, and plain values as JSON.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dassl_clip.clip.peers import ALONE, Peers
from dassl_clip.results.errors import UserError

from .group import Group, gathered

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
        local, there = _number("LOCAL_RANK", rank), torch.cuda.device_count()
        wanted = _number("LOCAL_WORLD_SIZE", size)
        if max(wanted, local + 1) > there:
            raise UserError(
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

    An error that all processes have, or that ends them one after the other, is thus told once. If the main process is
    gone with the store that it kept, it, or torchrun for it, has told why on its machine; elsewhere the first one does.
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
    x = x.clone(memory_format=torch.contiguous_format)
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
    parts = gathered(torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8))
    return [json.loads(bytes(part.tolist())) for part in parts]


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """The rows `[N, ...]` of all processes in the order of their ranks, any number from each; without gradients."""
    return peers().gather(x)


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
