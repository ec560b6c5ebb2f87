"""The tables of docs/performance.md, made of all result files; and what one device would take, extrapolated from them.

example: python benchmarks/page.py
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

from reporting import (
    RESULTS,
    batches_table,
    claims_table,
    digits,
    notes,
    precision_table,
    rates_table,
    scaling_table,
    shown_seconds,
    times,
    write_atomically,
)  # fmt: skip
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
FORM = "github"
CLAIMS = ("text_tower", "gopro_step", "gopro_eval", "clap_training", "inmap", "cache")
OTHERS = ("transduction", "precision", "datapath", "scaling")
IMAGENET, BILLION = 1_281_167, 10**9
SHOTS, BATCH, EPOCHS = 16, 4, 50  # GOPro's protocol
SINKHORN_ITERATIONS, SOLUTIONS = 20, 2  # a run solves for plain and for Sinkhorn's labels
DISK_RATE = 2e9  # bytes a second that are read from one NVMe drive


def tables(folder: Path = RESULTS) -> str:
    """All tables, device after device."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(section in content for section in (*CLAIMS, *OTHERS)):
            parts += device_tables(content)
    return "\n\n".join(parts)


def device_tables(content: Mapping[str, Mapping]) -> list[str]:
    """The parts of one device."""
    claims = [entry for section in CLAIMS for entry in content.get(section, {}).values()]
    rates = list(content.get("datapath", {}).values())
    first = next(entry for section in (*CLAIMS, *OTHERS) for entry in content.get(section, {}).values())
    machine = first["machine"]
    loads = [entry["machine"]["load"] for entry in claims]
    parts = [f"### {machine['device']}"]
    facts = f"{machine['processor']}, torch {machine['torch']}, open_clip {machine['open_clip']}"
    parts.append(facts + (f"; load of the machine {min(loads):.1f} to {max(loads):.1f}." if loads else "."))
    if claims:
        parts.append(claims_table(claims, FORM))
        parts.append("\n".join(f"- {line}" for line in notes(claims)))
    parts += bounds(claims)
    if "transduction" in content:
        scored = list(content["transduction"].values())
        parts.append("Methods that score images together, one draw of images or many, and images per second:")
        parts.append(batches_table(scored, FORM))
        parts.append("\n".join(f"- {line}" for line in notes(scored)))
    if "precision" in content:
        parts.append("Lower precision of the frozen towers, against `fp32`:")
        parts.append(precision_table(list(content["precision"].values()), FORM))
    for entry in rates:
        parts.append("Decode and augment, against the tower:")
        parts.append(rates_table(entry, FORM))
    if "scaling" in content:
        parts.append("Cost against size:")
        parts.append(scaling_table(content["scaling"], FORM))
    extrapolated = on_paper(content)
    if extrapolated:
        parts.append("On paper, from the rates above:")
        parts.append(tabulate(extrapolated, headers=["work", "how", "time"], tablefmt=FORM, disable_numparse=True))
    return [part for part in parts if part]


def bounds(claims: list[Mapping]) -> list[str]:
    """What ours spends its time in, where it was profiled."""
    lines = [
        f"- {entry['title']}: " + ", ".join(f"`{name}` {share:.0f} %" for name, share in entry["profile"][:5])
        for entry in claims
        if "profile" in entry
    ]
    return ["Operators that ours spends most of its time in:", "\n".join(lines)] if lines else []


def on_paper(content: Mapping[str, Mapping]) -> list[list[str]]:
    """ImageNet-1k, and a billion unlabeled images, on one such device."""
    rows = []
    for name, entry in content.get("datapath", {}).items():
        for tower, rate in entry["images per second"].items():
            for what, count in (("ImageNet-1k's training images", IMAGENET), ("a billion images", BILLION)):
                if tower.startswith("tower"):
                    how = f"{name}{tower.removeprefix('tower')}, {rate:,.0f} images per second"
                    rows.append([f"encode {what}", how, shown_seconds(count / rate)])
    step = content.get("gopro_step", {}).get("1000 classes")
    if step:
        steps = 1000 * SHOTS // BATCH * EPOCHS
        each = {side: statistics.median(step["seconds"][side]) for side in ("ours", "plain")}
        how = f"{steps:,} steps of {shown_seconds(each['ours'])}"
        rows.append([f"GOPro on ImageNet, {SHOTS} shots, {EPOCHS} epochs", how, shown_seconds(steps * each["ours"])])
        how = f"{steps:,} steps of {shown_seconds(each['plain'])}, if it had the memory"
        rows.append(["the same by the plain program", how, shown_seconds(steps * each["plain"])])
    solved = [entry["facts"]["fast"]["steps"] for entry in content.get("inmap", {}).values()]
    on_disk = [entry for name, entry in content.get("scaling", {}).items() if name.startswith("disk")]
    if solved and on_disk:
        rows += inmap_on_paper(max(on_disk, key=lambda entry: entry["images"]), max(solved))
    return rows


def inmap_on_paper(disk: Mapping, passes: int) -> list[list[str]]:
    """Sinkhorn and both solutions of a run on more images, all of whose rows are read and formed in each pass."""
    iteration, each = disk["Sinkhorn, its check and an iteration, s"] / 2, disk["a pass of the solver, s"]
    seconds = (SINKHORN_ITERATIONS + 1) * iteration + SOLUTIONS * passes * each
    rows = []
    for what, count in (("ImageNet-1k's training images", IMAGENET), ("a billion images", BILLION)):
        factor = count / disk["images"]
        size = 2 * count * disk["dimensions"]
        reads = (SINKHORN_ITERATIONS + 1 + SOLUTIONS * passes) * size / DISK_RATE
        how = (
            f"{SINKHORN_ITERATIONS} iterations and {SOLUTIONS} x {passes} passes at {disk['images']:,} images from disk"
            f", x {digits(factor)}; reading {size / 1e9:,.0f} GB in each at {DISK_RATE / 1e9:g} GB/s alone: "
            f"{shown_seconds(reads)}"
        )
        name = f"InMaP, {what} x {disk['dimensions']} x {disk['classes']:,}"
        rows.append([name, how, shown_seconds(max(seconds * factor, reads))])
    return rows


def short_table(folder: Path = RESULTS) -> str:
    """How much faster and smaller, one line per claim and one column per device.

    A star marks a claim of which a share of one side was run and the rest extrapolated.
    """
    ratios: dict[str, dict[str, str]] = {}
    devices = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in (entry for section in CLAIMS for entry in content.get(section, {}).values()):
            device, memory = entry["machine"]["device"], entry.get("memory_ratio", 0)
            shown = times(entry["time_ratio"]) + " *" * bool(entry["extrapolated"])
            shown += f", memory 1/{memory:.0f}" if memory >= 2 else f", memory {1 / memory:.0f} x" if memory else ""
            ratios.setdefault(entry["title"], {})[device] = shown
            devices += [device] * (device not in devices)
    rows = [[title, *(found.get(device, "") for device in devices)] for title, found in ratios.items()]
    return tabulate(rows, headers=["faster than the plain program", *devices], tablefmt=FORM, disable_numparse=True)


MARKED = {"short table": short_table, "tables": tables}  # what stands between the marks of the page


def with_tables(text: str, folder: Path = RESULTS) -> str:
    """A page with new tables between its marks.

    Raises:
        ValueError: The page lacks a mark.
    """
    for name, make in MARKED.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"the page has no tables to renew; it needs the lines {begin} and {end}")
        shown = f"{begin}\n\n{make(folder)}\n\n{end}"
        text = re.sub(f"{begin}.*{end}", lambda _, shown=shown: shown, text, flags=re.DOTALL)
    return text


def update(page: Path = PAGE, folder: Path = RESULTS) -> None:
    """Write the page with new tables."""
    write_atomically(page, with_tables(page.read_text(encoding="utf-8"), folder))


def main() -> None:
    """Renew the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    update(options.page, options.results)
    print(f"renewed the tables of {options.page}")


if __name__ == "__main__":
    main()
