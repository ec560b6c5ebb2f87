"""The one precision policy of all trainers."""

from collections.abc import Callable

import torch
from torch import Tensor

PRECISIONS = ("fp32", "amp")


class Precision:
    """The one precision policy: `fp32`, or `amp` = bfloat16 where supported, else float16 with a scaled loss.

    Only frozen towers run under `autocast`; learned parts and losses stay in float32.
    """

    def __init__(self, name: str, device: torch.device):
        half = torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16
        self.name = name
        self.device = device
        self.dtype = half if name == "amp" else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """The context in which a frozen tower runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.name == "amp")

    def to_host(self, values: Tensor) -> Callable[[], list[float]]:
        """Start to copy a vector to the host; the function that is returned waits for it.

        What is asked of a GPU in between goes on meanwhile, so that looking at a loss does not leave it idle.
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
