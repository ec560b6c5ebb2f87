"""What the benchmarks share: two sides timed in turns, memory of each alone, arithmetic, differences, result files.

A claim is a `Work`: the same results by this project's code (`ours`) and by a plain rewriting of what the papers'
programs do (`plain`). A side is a list of parts, each with the number of times that the whole program does it; most
are run whole and count once. A part that would take hours is measured on a share; `extrapolated` says on which.

- Time: both sides run in turns in one process. Each is measured until it has been run `--repeats` times or has used up
  `--budget` seconds, at least once; the median counts, and all measurements are kept. With `--runs N` that is done in
  N processes, one after the other: the run with the median ratio counts, and the spread is the range of the ratios.
- Memory: what one run of one side needs above what was there before, in a process of its own.
- Arithmetic: floating-point operations of the matrix products, counted in that same process. Their ratio is the limit
  of the ratio of times: what it would be if both sides ran at the same rate.
- Difference: the largest over the results, relative to the largest number of the plain result.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reporting import RESULTS, SIDES, claims_table, describe, notes, rounded, write
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ARCHITECTURE = "ViT-B/16:random"
LONG = 2.0  # seconds from which the first run of a side counts as a measurement, not as a warm-up
TOP_OPERATORS = 8
QUICK_REPEATS, QUICK_BUDGET = 2, 10.0
TIMES = "times"  # what a process of its own measures in place of a side: both sides in turns

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Something a side does.

    Attributes:
        run: Does it once, and returns results to compare.
        times: How often the whole program does it; a function is asked when the part has been run.
    """

    run: Callable[[], Results]
    times: float | Callable[[], float] = 1.0

    @property
    def factor(self) -> float:
        """`times` as a number."""
        return self.times() if callable(self.times) else self.times


class Work:
    """One claim.

    Attributes:
        title: What is done, for the table.
        target: The ratio of times that is aimed at on two CPU cores, or None.
        extrapolated: What was measured on a share only, in words; empty if everything was run.
        uses_architecture: Whether `--architecture` decides what is measured.
        alone: Whether the sides are run in processes of their own, for their memory and arithmetic.
        memory_times: The memory of a side over the measured memory, where only a share is run.
        kept: Bytes that a side keeps all the while, but that are there before it is measured.
    """

    title = ""
    target: float | None = None
    extrapolated = ""
    uses_architecture = True
    alone = True
    memory_times: Mapping[str, float] = {"ours": 1.0, "plain": 1.0}
    kept: Mapping[str, int] = {"ours": 0, "plain": 0}

    def ours(self) -> list[Part]:
        """What this project does."""
        raise NotImplementedError

    def plain(self) -> list[Part]:
        """What the papers' programs do."""
        raise NotImplementedError

    def difference(self, ours: Results, plain: Results) -> dict[str, float]:
        """The largest difference of each result that both sides have, relative to the plain one's largest number."""
        return {name: largest_difference(ours[name], plain[name]) for name in plain if name in ours}

    def counted(self) -> dict[str, float]:
        """Operations of the sides, where they are not what the sides did in processes of their own."""
        return {}

    def facts(self) -> dict[str, object]:
        """More that belongs into the result file, asked for after the measurement."""
        return {}


Cases = Mapping[str, Callable[[argparse.Namespace], Work]]


# ------------------------------------------------------------------------------------------------------ arguments


def make_parser(doc: str, repeats: int = 5, budget: float = 30.0, runs: int = 1) -> argparse.ArgumentParser:
    """A parser with the arguments that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=repeats, help=f"most measurements of a side ({repeats})")
    parser.add_argument(
        "--budget", type=float, default=budget, help=f"seconds after which a side is not run again ({budget:g})"
    )
    parser.add_argument("--runs", type=int, default=runs, help=f"processes that measure the times ({runs})")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="some of the script's cases")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--profile", action="store_true", help="also list the operators that ours spends its time in")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/<device>.json")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Set the threads, fewer repeats where it has to be quick, and silence what the project logs.

    Raises:
        ValueError: The device does not exist.
    """
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch finds no GPU here; take --device cpu")
    if options.quick:
        options.repeats, options.budget = min(options.repeats, QUICK_REPEATS), min(options.budget, QUICK_BUDGET)
        options.runs = 1
    torch.set_num_threads(options.threads)
    logging.getLogger("dassl_clip").setLevel(logging.ERROR)


# -------------------------------------------------------------------------------------------------------- measure


def run_cases(
    options: argparse.Namespace,
    section: str,
    cases: Cases,
    table: Callable[[Sequence[Mapping]], str] = claims_table,
) -> dict[str, dict]:
    """Measure the cases of a script, print a table of them, and write them when asked.

    Args:
        options: Of `make_parser`.
        section: Name of the script, under which results are written.
        cases: The works by name; built when their turn comes.
        table: Makes a table of the entries.

    Returns:
        The entries by case.

    Raises:
        ValueError: `--only` names a case that does not exist.
    """
    prepare(options)
    if options.alone:
        case, side = options.alone
        work = cases[case](options)
        found = compare(work, options) if side == TIMES else measure_side(work, side, options.device)
        print(json.dumps(found))
        return {}
    unknown = sorted(set(options.only or ()) - set(cases))
    if unknown:
        raise ValueError(f"--only: there is no case {', '.join(unknown)}; there are {', '.join(map(repr, cases))}")
    entries = {}
    for case in options.only or cases:
        work, alone = cases[case](options), {}
        if work.alone:
            release()
            alone = {side: run_alone(case, side) for side in SIDES}
        runs = [compare(work, options)]
        release()
        runs += [run_alone(case, TIMES) for _ in range(options.runs - 1)]
        entry = describe(options) | median_run(runs) | memory_and_arithmetic(work, alone)
        model = getattr(options, "architecture", ARCHITECTURE)
        other = f", {model.removesuffix(':random')}" if work.uses_architecture and model != ARCHITECTURE else ""
        entries[case] = entry | {"title": work.title + other}
        if options.write:
            write(options, section, case + other, entries[case])
        del work
        release()
    heading = ", ".join([getattr(options, "architecture", ""), options.device, f"{options.threads} threads"])
    print(f"{heading.removeprefix(', ')}; load {os.getloadavg()[0]:.1f}")
    print(table(entries.values()))
    print("\n".join(notes(entries.values())))
    return entries


def release() -> None:
    """Give memory that is no longer used back to the device, for processes beside this one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compare(work: Work, options: argparse.Namespace) -> dict[str, object]:
    """Times of both sides in turns, and the difference of their results."""
    parts = {"ours": work.ours(), "plain": work.plain()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    spent, results = dict.fromkeys(SIDES, 0.0), {}
    for side in SIDES:
        results[side], taken = run_side(parts[side], options.device)
        if sum(taken) > LONG:
            seconds[side].append(weighted(parts[side], taken))
            spent[side] += sum(taken)
    while waiting := [s for s in SIDES if not seconds[s] or _goes_on(len(seconds[s]), spent[s], options)]:
        for side in waiting:
            _, taken = run_side(parts[side], options.device)
            seconds[side].append(weighted(parts[side], taken))
            spent[side] += sum(taken)
    ours, plain = (statistics.median(seconds[side]) for side in SIDES)
    entry = {
        "title": work.title,
        "target": work.target,
        "seconds": {side: [rounded(value) for value in values] for side, values in seconds.items()},
        "time_ratio": rounded(plain / ours),
        "spread": [
            rounded(min(seconds["plain"]) / max(seconds["ours"])),
            rounded(max(seconds["plain"]) / min(seconds["ours"])),
        ],
        "difference": {name: rounded(v) for name, v in work.difference(results["ours"], results["plain"]).items()},
        "extrapolated": work.extrapolated,
        "facts": work.facts(),
    }
    if options.profile:
        entry["profile"] = profile(parts["ours"], options.device)
        print(tabulate(entry["profile"], headers=[f"{work.title}: operator", "share of ours, %"]))
    return entry


def median_run(runs: Sequence[dict[str, object]]) -> dict[str, object]:
    """Of several results of `compare`, that with the median ratio of times, and the ratios of all: `runs`.

    Its spread is the range of the ratios. Of an even number the lower of the two in the middle counts.
    """
    if len(runs) == 1:
        return runs[0]
    ordered = sorted(runs, key=lambda run: run["time_ratio"])
    ratios = [run["time_ratio"] for run in ordered]
    return ordered[(len(runs) - 1) // 2] | {"runs": ratios, "spread": [ratios[0], ratios[-1]]}


def _goes_on(count: int, spent: float, options: argparse.Namespace) -> bool:
    """Whether a side that was run `count` times in `spent` seconds is run again."""
    return count < options.repeats and spent * (count + 1) / count <= options.budget


def run_side(parts: Sequence[Part], device: str) -> tuple[Results, list[float]]:
    """The results of a side, and the seconds of each part."""
    results, taken = {}, []
    for part in parts:
        found, seconds = timed(part.run, device)
        results |= found
        taken.append(seconds)
    return results, taken


def weighted(parts: Sequence[Part], taken: Sequence[float]) -> float:
    """Seconds of the whole program."""
    return sum(part.factor * seconds for part, seconds in zip(parts, taken))


def timed(run: Callable[[], object], device: str) -> tuple[object, float]:
    """What a function returns, and the seconds it took."""
    synchronise(device)
    begin = time.perf_counter()
    result = run()
    synchronise(device)
    return result, time.perf_counter() - begin


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def largest_difference(ours: Tensor, plain: Tensor) -> float:
    """The largest difference, relative to the largest number of `plain`.

    Raises:
        ValueError: The shapes differ.
    """
    if ours.shape != plain.shape:
        raise ValueError(f"results of one work have one shape, got {tuple(ours.shape)} and {tuple(plain.shape)}")
    ours, plain = ours.detach().double().cpu(), plain.detach().double().cpu()
    return float((ours - plain).abs().max() / plain.abs().max().clamp_min(torch.finfo(plain.dtype).tiny))


def profile(parts: Sequence[Part], device: str) -> list[tuple[str, float]]:
    """The operators that a side spends most of its time in, and their shares in per cent."""
    kinds = torch.profiler.ProfilerActivity
    cuda = device.startswith("cuda")
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]) as recorder:
        for part in parts:
            part.run()
        synchronise(device)
    spent = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in recorder.key_averages()
    }
    total = sum(spent.values()) or 1.0
    best = sorted(spent, key=spent.get, reverse=True)[:TOP_OPERATORS]
    return [(name[:60], rounded(100 * spent[name] / total, 3)) for name in best]


# ---------------------------------------------------------------------------------------------- a process of its own


def run_alone(case: str, side: str) -> dict[str, object]:
    """`measure_side` (or `compare`, for the side `TIMES`) in a fresh process with this process's arguments.

    Raises:
        RuntimeError: The process failed; with the end of what it said.
    """
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--alone", case, side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_side(work: Work, side: str, device: str) -> dict[str, float]:
    """Bytes that one run of a side needs above what is there before, and the operations of its matrix products."""
    parts = getattr(work, side)()
    before = start_peak(device)
    flops = 0.0
    for part in parts:
        flops += operations(part.run) * part.factor
    return {"bytes": work.memory_times[side] * (peak(device) - before), "flops": flops}


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a run.

    torch's fused attention of towers without gradients is switched off meanwhile: the counter does not look into it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Counter() as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.total


_ATEN = torch.ops.aten
FORMULAS = flop_registry | {  # torch has none for its fused attention on CPUs
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class _Counter(TorchDispatchMode):
    """Counts by torch's own formulas.

    Unlike `FlopCounterMode` it puts no hooks on modules: those keep what a checkpointed pass computes again alive until
    the end, which is not the memory that a run needs.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def memory_and_arithmetic(work: Work, alone: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    """The part of an entry that comes from the processes of their own."""
    found = {}
    flops = work.counted() or {side: alone[side]["flops"] for side in alone}
    if work.alone:
        size = {side: max(1.0, alone[side]["bytes"] + work.kept[side]) for side in SIDES}
        found["memory_mb"] = {side: rounded(size[side] / 2**20) for side in SIDES}
        found["memory_ratio"] = rounded(size["plain"] / size["ours"])
    if flops:
        found["tera_operations"] = {side: rounded(count / 1e12) for side, count in flops.items()}
        found["arithmetic_ratio"] = rounded(flops["plain"] / flops["ours"])
    return found


def start_peak(device: str) -> int:
    """Forget earlier peaks of memory; returns the bytes in use now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # where the kernel does not allow it, the peak since the start counts
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: str) -> int:
    """The most bytes in use since `start_peak`: of the GPU's allocator, or resident in this process."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident("VmHWM")


def resident(field: str) -> int:
    """A field of this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1))
