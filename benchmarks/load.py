"""A large data set of tiny images through ZeroshotCLIP and the feature cache: memory, and a SIGKILL in the middle.

The images are those of Icons, scaled to a few pixels and repeated under other names. The first start is killed when a
share of the images is encoded, the second resumes. Printed are the images per second, how many images were encoded
twice, and the memory of the process over time, once all images are listed: what it holds itself (anonymous) and what
it maps of files (which the system takes back when it needs memory).

    python benchmarks/load.py --images 200000 --kill-at 0.4
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dassl_clip.embedded import ICONS_FOLDER

SOURCE, TARGET = "few", "many"
TRAIN = Path(__file__).parents[1] / "train.py"


@dataclass
class Memory:
    """Memory of a process while it encodes, in MiB.

    Attributes:
        rows: Images that were encoded when it was looked at.
        own: Anonymous memory.
        files: Mapped files.
    """

    rows: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def look(self, pid: int, rows: int) -> None:
        """Note what a process has now."""
        text = Path(f"/proc/{pid}/status").read_text()
        self.rows.append(rows)
        for name, values in (("RssAnon", self.own), ("RssFile", self.files)):
            values.append(int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024)

    def growth(self) -> float:
        """Anonymous MiB for 100,000 more images: the slope of a straight line through all looks but the first tenth."""
        rows, own = (values[len(values) // 10 :] for values in (self.rows, self.own))
        return 1e5 * statistics.linear_regression(rows, own).slope if len(set(rows)) > 1 else 0.0

    def described(self) -> str:
        """In words."""
        return (
            f"{len(self.own)} looks: own memory {min(self.own):.0f} to {max(self.own):.0f} MiB "
            f"({self.growth():+.1f} MiB for 100,000 images), mapped files up to {max(self.files):.0f} MiB"
        )


def make_images(root: Path, count: int, side: int) -> None:
    """Write `count` images of the target domain, and one a class of a source domain, in the layout of FolderDomains."""
    pictures = []
    for path in sorted(ICONS_FOLDER.rglob("*.png")):
        packed = io.BytesIO()
        Image.open(path).convert("RGB").resize((side, side)).save(packed, "PNG")
        pictures.append((path.parent.name, packed.getvalue()))
    classes = sorted({name for name, _ in pictures})
    for name in classes:
        for domain in (SOURCE, TARGET):
            (root / domain / name).mkdir(parents=True)
    first = dict(reversed(pictures))
    for name in classes:
        (root / SOURCE / name / "0.png").write_bytes(first[name])
    for number in range(count):
        name, data = pictures[number % len(pictures)]
        (root / TARGET / name / f"{number:07d}.png").write_bytes(data)


def progress(cache: Path) -> int:
    """Images whose features are on the disk for certain."""
    for path in (cache / "features").glob(".*.part.json"):
        try:
            return json.loads(path.read_text())["rows"]
        except (OSError, ValueError):  # being replaced at this moment
            return 0
    return 0


def start(work: Path, batch: int, kill_at: int | None) -> tuple[int, float, int, Memory]:
    """Run ZeroshotCLIP, until a number of images is encoded or to its end.

    Returns:
        Its exit code, its seconds, the images that were there when it ended, and its memory.
    """
    config, memory = work / "data.yaml", Memory()
    config.write_text("DATASET:\n  NAME: FolderDomains\n")
    argv = [sys.executable, str(TRAIN), "--trainer", "ZeroshotCLIP", "--dataset-config-file", str(config)]
    argv += ["--root", str(work / "images"), "--source-domains", SOURCE, "--target-domains", TARGET, "--seed", "1"]
    argv += ["--output-dir", str(work / "run"), "MODEL.BACKBONE.NAME", "IconsCLIP", "DATALOADER.NUM_WORKERS", "0"]
    argv += ["DATALOADER.TEST.BATCH_SIZE", str(batch), "DATASET.NUM_SHOTS", "1"]
    begin, before, rows = time.monotonic(), progress(work / "cache"), 0
    with open(work / "log.txt", "ab") as log:
        env = os.environ | {"DASSL_CLIP_CACHE": str(work / "cache")}
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
        while process.poll() is None:
            time.sleep(1.0)
            now = progress(work / "cache")
            rows = max(rows, now)
            if now > before and process.poll() is None:  # while it encodes
                memory.look(process.pid, rows)
            if kill_at is not None and rows >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return process.returncode, time.monotonic() - begin, max(rows, progress(work / "cache")), memory


def main() -> None:
    """Make the images, kill the first start, let the second end, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200_000, help="images of the target domain")
    parser.add_argument("--side", type=int, default=16, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=100, help="DATALOADER.TEST.BATCH_SIZE")
    parser.add_argument("--kill-at", type=float, default=0.4, help="share of the images at which the first start ends")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, removed afterwards)")
    args = parser.parse_args()
    work = args.folder or Path(tempfile.mkdtemp(prefix="dassl-clip-load-"))
    try:
        if not (work / "images").is_dir():
            begin = time.monotonic()
            make_images(work / "images", args.images, args.side)
            print(f"{args.images} images of {args.side}x{args.side} pixels made in {time.monotonic() - begin:.0f} s")
        code, seconds, rows, memory = start(work, args.batch, int(args.kill_at * args.images))
        print(f"first start: killed after {seconds:.0f} s (exit code {code}), {rows} images on the disk")
        print(f"  {memory.described()}")
        code, seconds, _, memory = start(work, args.batch, None)
        text = (work / "log.txt").read_text(errors="replace")
        there = re.findall(r"features: (\d+) of \d+ are there already", text)
        if code or not there:
            sys.exit(f"the second start failed (exit code {code}):\n{text[-2000:]}")
        done = int(there[-1])
        print(f"second start: {done} images were there, {args.images - done} encoded in {seconds:.0f} s in all")
        print(f"  {memory.described()}")
        record = json.loads((work / "run" / "record.json").read_text())
        test = record["metrics"]["test"]
        print(f"  {test['total']} images tested, accuracy {test['accuracy']:.2f} %")
    finally:
        if args.folder is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
