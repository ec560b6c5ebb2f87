"""Result files of the benchmarks, one for each device, and the tables that are made of them."""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import torch
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
SIDES = ("ours", "plain")

# --------------------------------------------------------------------------------------------------- result files


def describe(options: argparse.Namespace) -> dict[str, object]:
    """The arguments and the machine of a measurement."""
    left_out = {"write", "results", "alone", "only", "profile"}
    setting = {key: value for key, value in vars(options).items() if key not in left_out}
    machine = {
        "device": device_name(options),
        "processor": processor(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "load": rounded(os.getloadavg()[0], 3),
    }
    return {"setting": setting, "machine": machine}


def device_name(options: argparse.Namespace) -> str:
    """The GPU's name, or `CPU, <n> threads`."""
    if options.device.startswith("cuda"):
        return torch.cuda.get_device_name(options.device)
    return f"CPU, {options.threads} thread{'s' * (options.threads != 1)}"


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def results_file(options: argparse.Namespace) -> Path:
    """The device's file."""
    return options.results / f"{re.sub(r'[^a-z0-9]+', '-', device_name(options).lower()).strip('-')}.json"


def write(options: argparse.Namespace, section: str, case: str, entry: Mapping[str, object]) -> None:
    """Put an entry into the device's file, in the place of an older one and beside all others."""
    path = results_file(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content.setdefault(section, {})[case] = entry
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, whole."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def rounded(value: float, digits: int = 5) -> float:
    """A number with some significant digits."""
    return float(f"{value:.{digits}g}")


# --------------------------------------------------------------------------------------------------------- tables

CLAIMS = (
    "work", "ours", "plain", "faster", "spread", "arithmetic", "MB ours", "MB plain", "smaller", "largest difference",
    "target",
)  # fmt: skip


def claims_table(entries: Sequence[Mapping], form: str = "simple") -> str:
    """Entries of `run_cases` as a table; `form` is one of tabulate's."""
    return tabulate([_claim(entry) for entry in entries], headers=CLAIMS, tablefmt=form, disable_numparse=True)


def _claim(entry: Mapping) -> list[str]:
    seconds = entry["seconds"]
    sides = [f"{shown_seconds(statistics.median(seconds[side]))} ({len(seconds[side])})" for side in SIDES]
    low, high = entry["spread"]
    memory = ["", "", ""]
    if "memory_mb" in entry:
        memory = [f"{entry['memory_mb'][side]:,.0f}" for side in SIDES] + [times(entry["memory_ratio"])]
    limit = entry.get("arithmetic_ratio")
    return [
        entry["title"] + (" *" if entry["extrapolated"] else ""),
        *sides,
        times(entry["time_ratio"]),
        f"{digits(low)} to {digits(high)}",
        times(limit) if limit else "",
        *memory,
        f"{max(entry['difference'].values()):.1e}" if entry["difference"] else "",
        f"{entry['target']:g} x" if entry["target"] else "",
    ]


def batches_table(entries: Sequence[Mapping], form: str = "simple") -> str:
    """The entries of `transduction.py` as a table, with the images that each side scores in a second."""
    headers = [*CLAIMS[:5], "images per second", "plain", CLAIMS[-2]]
    rows = []
    for entry in entries:
        claim = _claim(entry)
        rates = [entry["facts"]["images"] / statistics.median(entry["seconds"][side]) for side in SIDES]
        rows.append([*claim[:5], *(f"{rate:,.0f}" for rate in rates), claim[-2]])
    return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True)


def times(ratio: float) -> str:
    """A ratio with two digits, or whole."""
    return f"{digits(ratio)} x"


def digits(ratio: float) -> str:
    """A number with two digits, or whole."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def notes(entries: Sequence[Mapping]) -> list[str]:
    """A line for each entry that was not run whole."""
    return [f"\\* {entry['title']}: {entry['extrapolated']}" for entry in entries if entry["extrapolated"]]


def rates_table(entry: Mapping, form: str = "simple") -> str:
    """The rates of `datapath.py` as a table: loaders by load and workers, with what they are of the tower's rate."""
    rates = dict(entry["images per second"])
    towers = {name: rates.pop(name) for name in list(rates) if name.startswith("tower")}
    rows = [[name, f"{rate:,.0f}", times(rate / towers["tower"])] for name, rate in rates.items()]
    rows += [[f"{name}, {entry['setting']['architecture']}", f"{rate:,.0f}", ""] for name, rate in towers.items()]
    return tabulate(rows, headers=["loader", "images per second", "of the tower"], tablefmt=form, disable_numparse=True)


def scaling_table(entries: Mapping[str, Mapping], form: str = "simple") -> str:
    """The sweeps of `scaling.py` as a table; the run on disk is a list of its figures."""
    sweeps = [
        [
            name,
            ", ".join(f"{size:,}" for size in entry["sizes"]),
            ", ".join(map(shown_seconds, entry["seconds"])),
            f"{entry['exponent']:.2f}",
            f"{entry['residual']:.2f} x",
        ]
        for name, entry in entries.items()
        if "sizes" in entry
    ]
    parts = []
    if sweeps:
        headers = ["cost", "sizes", "time", "exponent", "farthest"]
        parts.append(tabulate(sweeps, headers=headers, tablefmt=form, disable_numparse=True))
    for entry in (entry for entry in entries.values() if "dimensions" in entry):
        shown = [(key, f"{entry[key]:,}") for key in entry if key not in ("setting", "machine")]
        parts.append(tabulate(shown, headers=["rows on disk", ""], tablefmt=form, disable_numparse=True))
    return "\n\n".join(parts)


def precision_table(entries: Sequence[Mapping], form: str = "simple") -> str:
    """Entries of `precision.py` as a table."""
    headers = [
        "model",
        "precision",
        "images",
        "1 - cosine, images",
        "texts",
        "change of a cosine",
        "changed predictions",
    ]
    rows = []
    for entry in entries:
        for name, found in entry["precisions"].items():
            row = [entry["model"], name, f"{found['images']:,}"]
            row += [f"{found[key]:.1e}" for key in ("image distance", "text distance", "cosine")]
            if "accuracy, %" in found:
                row += [f"{found['changed predictions, %']:.2f} %"]
                row += [f"{found['accuracy, %']:.2f} %", f"{found['accuracy of fp32, %']:.2f} %"]
            rows.append(row + [""] * (9 - len(row)))
    return tabulate(rows, headers=[*headers, "accuracy", "of fp32"], tablefmt=form, disable_numparse=True)


def shown_seconds(value: float) -> str:
    """Seconds with a unit and three digits."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= 2 * size or (unit == "s" and value >= 1):
            count = value / size
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
    return f"{1000 * value:.3g} ms"
