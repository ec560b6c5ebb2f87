"""How long a loop waits for its images, against what it does with them; says so when the loader is the bottleneck."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SHARE = 0.3  # of the time, from which on waiting is worth a line
SECONDS = 5.0  # that a pass must take before its share says anything


class Watched:
    """The batches of a loader; times how long each is waited for.

    At the end of a pass that waited for more than `SHARE` of its time, one line gives the share, the images a second of
    the loader and of the rest, and the setting to change; once for each kind of pass.

    Args:
        loader: The loader, or any sized iterable of batches with an entry `label`.
        what: Names the pass in the line; its first word is the kind.
        workers: Processes that the loader has, 0 for none of its own.
        told: Kinds that a line was written for already.

    Attributes:
        waited: Seconds that the last pass waited.
        worked: Seconds between its batches.
        images: Images that it saw.
    """

    def __init__(self, loader: Iterable[Any], what: str, workers: int, told: set[str] | None = None):
        self.loader, self.what, self.workers = loader, what, workers
        self.told = set() if told is None else told
        self.waited = self.worked = 0.0
        self.images = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.waited, self.worked, self.images = 0.0, 0.0, 0
        begin = time.perf_counter()
        for batch in self.loader:
            came = time.perf_counter()
            self.waited += came - begin
            if isinstance(batch, dict) and "label" in batch:
                self.images += len(batch["label"])
            yield batch
            begin = time.perf_counter()
            self.worked += begin - came
        line = self.advice(os.cpu_count() or 1)
        if line and self.what.split()[0] not in self.told:
            self.told.add(self.what.split()[0])
            logger.info(line)

    def advice(self, cores: int) -> str:
        """What to say of the last pass on a machine with so many cores; "" if it did not wait for long."""
        whole = self.waited + self.worked
        if not self.images or whole < SECONDS or self.waited < SHARE * whole:
            return ""
        busy = whole if self.workers else self.waited  # workers read on while the loop works
        rates = f"the loader gives {self.images / busy:.0f} images/s"
        if self.worked:
            rates += f", the rest could take {self.images / self.worked:.0f}"
        enough = max(self.workers, 1) * busy / max(self.worked, busy / cores)  # workers as fast as the rest
        wanted = min(max(math.ceil(enough), self.workers + 1), cores)
        if wanted > self.workers:
            cure = f"DATALOADER.NUM_WORKERS {wanted} in place of {self.workers} ({cores} cores are here) would help"
        else:
            cure = (
                f"DATALOADER.NUM_WORKERS is {self.workers} and {cores} cores are here: files of about the model's "
                "input size, or a faster disk, would help"
            )
        return f"{self.what}: {100 * self.waited / whole:.0f} % of {whole:.0f} s is waiting for images; {rates}. {cure}"


class Progress:
    """Wraps a loader: timed (`Watched`), and under a progress bar where stderr is a terminal.

    Args:
        workers: Processes of loaders that do not say it themselves.
        shown: Whether this process may show a bar.
    """

    def __init__(self, workers: int = 0, shown: bool = True):
        self.workers, self.shown = workers, shown
        self.told: set[str] = set()

    def __call__(self, loader: Iterable[Any], text: str) -> tqdm:
        watched = Watched(loader, text, getattr(loader, "num_workers", self.workers), self.told)
        return tqdm(watched, desc=text, leave=False, disable=not (self.shown and sys.stderr.isatty()))
