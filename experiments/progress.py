"""What a person sees while many runs are under way: one bar in a terminal, plain lines anywhere else."""

import re
import sys
import time
from datetime import timedelta

from tqdm import tqdm

_EPOCH = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")


def fraction_done(line: str) -> float | None:
    """The share of training that a progress line of Dassl's loop reports, between 0 and 1."""
    match = _EPOCH.search(line)
    if match is None:
        return None
    epoch, epochs, batch, batches = map(int, match.groups())
    return (epoch - 1 + batch / max(batches, 1)) / max(epochs, 1)


class Reporter:
    """Progress of `total` runs on stdout; the bar, if stdout is a terminal, goes to stderr as tqdm's do."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.started = time.monotonic()
        self._shares: dict[str, tuple[str, float]] = {}
        terminal = sys.stdout.isatty() and sys.stderr.isatty()
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}]{postfix}"
        self._bar = tqdm(total=total, desc="runs", bar_format=form, dynamic_ncols=True) if terminal else None

    def say(self, text: str) -> None:
        """Print one or more lines, above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def update(self, name: str, label: str, share: float) -> None:
        """Note how far the run `name`, shown as `label`, is."""
        self._shares[name] = label, share
        self._draw()

    def finish(self, name: str, text: str) -> None:
        """Note the end of a run in one line, with the time that the others will take."""
        self._shares.pop(name, None)
        self.finished += 1
        spent = time.monotonic() - self.started
        left = self.total - self.finished
        time_left = timedelta(seconds=round(spent / self.finished * left))
        eta = f"; about {time_left} left" if left else f"; {timedelta(seconds=round(spent))} in all"
        width = len(str(self.total))
        self.say(f"[{self.finished:>{width}}/{self.total}] {text}{eta}")
        self._draw()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()

    def _draw(self) -> None:
        if self._bar is None:
            return
        shares = list(self._shares.values())
        self._bar.set_postfix_str(", ".join(f"{label} {share:.0%}" for label, share in shares), refresh=False)
        self._bar.n = self.finished + sum(share for _, share in shares)
        self._bar.refresh()
