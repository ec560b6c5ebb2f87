"""Listing a large data set: ImageNet's loader and the fingerprint of its data, against plain walks.

A tree of small files in ImageNet's layout (1,000 class folders; 200,000 files by default) is made in a temporary
folder. Timed in turns, the median counts:

- the loader, with 16 shots and with all images, and after it the fingerprint of the run's data;
- a walk with `os.walk` alone, which is the least that any lister does; and a walk that also asks for each file whether
  it is one, as Dassl's loaders do.

The loader asks the disk about folders alone and also makes labels, draws and records; the fingerprint asks for the size
of every file. The directories are in memory here: a network disk answers each question much more slowly.

    python benchmarks/listing.py --files 200000 --repeats 5
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from inputs import LISTS, ROOT
from tabulate import tabulate

from dassl_clip.cli import train
from dassl_clip.engine import registry
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.results.run_data import data_of


def make_tree(root: Path, files: int) -> None:
    """`root/imagenet/images/{train,val}/WNID/*.JPEG`, small files, one twentieth of them in val."""
    wnids = json.loads((LISTS / "imagenet.json").read_text(encoding="utf-8"))["class_spellings"]
    for part, count in (("val", files // 20), ("train", files - files // 20)):
        for index, wnid in enumerate(wnids):
            folder = root / "imagenet" / "images" / part / wnid
            folder.mkdir(parents=True)
            for number in range(index, count, len(wnids)):
                (folder / f"{wnid}_{number}.JPEG").write_bytes(b"%d" % number)


def load(root: Path, shots: int):
    """The data set, built as a run builds it."""
    overrides, _ = train.parse(
        ["--trainer", "ZeroshotCLIP", "--dataset-config-file", str(ROOT / "configs/datasets/imagenet.yaml"),
         "--root", str(root), "--seed", "1", "DATASET.NUM_SHOTS", str(shots)]
    )  # fmt: skip
    from dassl.data.datasets import build_dataset

    with contextlib.redirect_stdout(io.StringIO()):
        return build_dataset(resolve_config(overrides))


def size(dataset) -> int:
    """Images that the loader hands out."""
    return len(dataset.train_x) + len(dataset.test)


def walk(root: Path) -> int:
    """Files that `os.walk` finds."""
    return sum(len(files) for _, _, files in os.walk(root))


def walk_and_ask(root: Path) -> int:
    """The same, asking the disk whether each is a file, as one that checks every image does."""
    return sum(os.path.isfile(os.path.join(place, name)) for place, _, names in os.walk(root) for name in names)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    registry.register()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_tree(root, args.files)
        whole = load(root, -1)
        works: dict[str, Callable[[], int]] = {
            "ImageNet, 16 shots": lambda: size(load(root, 16)),
            "ImageNet, all images": lambda: size(load(root, -1)),
            "fingerprint of all images": lambda: len(data_of(whole).images),
            "os.walk": lambda: walk(root),
            "os.walk and isfile": lambda: walk_and_ask(root),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        counts: dict[str, int] = {}
        for _ in range(args.repeats):
            for name, work in works.items():
                begin = time.perf_counter()
                counts[name] = work()
                seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    plain = median["os.walk and isfile"]
    rows = [[name, counts[name], f"{value:.2f}", f"{plain / value:.2g} x"] for name, value in median.items()]
    print(tabulate(rows, ["way", "images or files", "seconds", "against walk and isfile"]))


if __name__ == "__main__":
    main()
