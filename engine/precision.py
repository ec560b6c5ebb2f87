"""The one precision policy of all trainers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError

PRECISIONS = {
    "fp32": "float32 throughout",
    "tf32": "on a GPU, products of frozen towers in TF32, 10 bits of mantissa; on a CPU as fp32",
    "amp": "frozen towers in bf16 where supported, else in fp16 with a scaled loss",
}


def check_precision(name: object, key: str) -> None:
    """Refuse a precision that is not known.

    Raises:
        UserError: with the known ones.
    """
    if name not in PRECISIONS:
        known = "; ".join(f"{precision!r} ({meaning})" for precision, meaning in PRECISIONS.items())
        raise UserError(f"{key} is {name!r}; expected one of {known}. Learned parts and losses stay in float32")


class Precision:
    """The one precision policy; `PRECISIONS` says what the names stand for.

    Only frozen towers run under `autocast`; learned parts and losses stay in float32.
    """

    def __init__(self, name: str, device: torch.device):
        half = torch.bfloat16 if device.type != "cuda" or _has_bf16() else torch.float16
        self.name = name
        self.device = device
        self.dtype = half if name == "amp" else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a frozen tower runs."""
        if self.name == "tf32" and self.device.type == "cuda":
            return _tf32()
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.name == "amp")

    def to_host(self, values: Tensor) -> Callable[[], list[float]]:
        """Start to copy a vector to the host; the function that is returned waits for it.

        The GPU works on what was queued in between, so that looking at a loss does not leave it idle.
        """
        if values.device.type != "cuda":
            return values.tolist
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def wait() -> list[float]:
            arrived.synchronize()
            return host.tolist()

        return wait


def _has_bf16() -> bool:
    """Whether the GPU itself computes in bf16; older ones emulate it, slower than float32."""
    return bool(torch.version.hip) or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))


@contextmanager
def _tf32() -> Iterator[None]:
    """Matrix products of float32 in TF32, on GPUs that have it; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
