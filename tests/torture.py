"""Kill a sweep of all trainers again and again: nothing may be lost, and the table must be the undisturbed one's.

Usage: python tests/torture.py [--kills 40] [--seed 0] [--folder DIR]

A small sweep on the embedded world runs undisturbed; then, into another folder with a cache of its own, it is started
and killed (SIGKILL to the command and all that it started) at random moments, and at last left alone. The exit code is
0 if both tables and all learned parts are equal, every run is there once, and no half-written file is left.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

FEW = {"TRAIN.CHECKPOINT_STEPS": 1, "TRAIN.CHECKPOINT_FREQ": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 8}
SWEEP = {
    "title": "Torture", "task": "fewshot", "datasets": ["icons"], "seeds": [1], "shots": 2,
    "rows": [
        {"method": "ZeroshotCLIP"},
        {"method": "CLAP", "set": {"TRAINER.CLAP.MAX_STEPS": 200, "TRAIN.CHECKPOINT_STEPS": 10}},
        {"method": "CoOp", "set": FEW | {"OPTIM.MAX_EPOCH": 3}},
        {"method": "GOPro", "set": FEW | {"OPTIM.MAX_EPOCH": 2}},
        {"method": "LinearProbe"},
        {"method": "InMaP", "set": {"TRAIN.CHECKPOINT_STEPS": 2}},
        {"method": "CoOp+InMaP", "set": FEW | {"OPTIM.MAX_EPOCH": 3}},  # refines the run of CoOp above
    ],
}  # fmt: skip


def main() -> int:
    """Run the sweep calmly and under fire, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs before the sweep is left alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        return torture(options.folder or Path(place), options.kills, random.Random(options.seed))


def torture(place: Path, kills: int, draw: random.Random) -> int:
    """The whole test in a folder; returns the exit code."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "torture.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    began = time.monotonic()
    if start(file, place / "calm").wait() != 0:
        print("the undisturbed sweep failed", file=sys.stderr)
        return 1
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.0f} s", flush=True)
    done, latest, before = 0, 0.3 * whole, 0
    while done < kills:
        finished = records(place / "killed")
        if finished == len(SWEEP["rows"]):
            forget(place / "killed", draw)
        # A start that finishes no run lets the next one live longer, so that the kills reach all runs of the sweep.
        latest = 0.3 * whole if finished != before else 1.2 * latest
        before = finished
        process = start(file, place / "killed")
        moment = draw.uniform(0, latest)
        try:
            code = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            finished = f"{records(place / 'killed')} of {len(SWEEP['rows'])} runs"
            print(f"kill {done} after {moment:.1f} s: {finished}", flush=True)
            continue
        if code:
            print(f"a start failed with exit code {code}", file=sys.stderr)
            return 1
    code = start(file, place / "killed").wait()
    faults = [f"the last start failed with exit code {code}"] if code else compare(place / "calm", place / "killed")
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    print(f"{kills} kills: {'faults, see above' if faults else 'the table, the learned parts and the files are equal'}")
    return 1 if faults else 0


def start(file: Path, out: Path) -> subprocess.Popen:
    """The sweep in a process group of its own; what it prints goes to a file."""
    command = [sys.executable, "-m", "dassl_clip.cli", "sweep", file, "--targets", "line", "--out", out, "--retry"]
    environment = os.environ | {"DASSL_CLIP_CACHE": f"{out}-cache"}
    with open(f"{out}.txt", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def records(out: Path) -> int:
    """Number of finished runs."""
    return len(list(out.rglob("record.json")))


def forget(out: Path, draw: random.Random) -> None:
    """Remove two finished runs and half of the kept features, so that there is something left to do."""
    for record in draw.sample(sorted(out.rglob("record.json")), 2):
        shutil.rmtree(record.parent)
    entries = sorted(Path(f"{out}-cache").rglob("*.npy"))
    for entry in draw.sample(entries, len(entries) // 2):
        entry.unlink()


def compare(calm: Path, killed: Path) -> list[str]:
    """What differs between two folders of runs, as sentences."""
    faults = []
    one, other = (
        {path.parent.relative_to(out): json.loads(path.read_text()) for path in out.rglob("record.json")}
        for out in (calm, killed)
    )
    faults += [f"lost: {name}" for name in one.keys() - other.keys()]
    faults += [f"unexpected: {name}" for name in other.keys() - one.keys()]
    for name in sorted(one.keys() & other.keys()):
        for key in ("metrics", "losses", "history", "learned", "config_hash", "data_fingerprint", "skipped_images"):
            if one[name].get(key) != other[name].get(key):
                faults.append(f"{name}: {key} is {other[name].get(key)}, undisturbed {one[name].get(key)}")
    for place in (killed, Path(f"{killed}-cache")):
        faults += [f"half a file: {path}" for path in place.rglob("*.tmp")]
        faults += [f"set aside: {path}" for path in place.rglob("*.torn")]
    return faults


if __name__ == "__main__":
    sys.exit(main())
