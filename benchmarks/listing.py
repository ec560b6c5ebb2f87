"""Listing a large data set: ImageNet's loader against a plain walk that asks the disk about every file.

A tree of empty files in ImageNet's layout (1,000 class folders; 200,000 files by default) is made in a temporary
folder. Timed in turns, the median counts:

- the loader, with 16 shots and with all images, listing the folders anew and with the listing kept by an earlier run;
- the listing alone, anew and kept, and what the disk is asked for it: folders listed, fingerprints of folders;
- a walk with `os.walk` alone, which is the least that any lister does; and a walk that also asks for each file whether
  it is one, as Dassl's loaders do.

The loader asks the disk about folders alone and also makes labels, draws and records, which the walks do not. The disk
is the machine's own and its directories are in memory: a network disk answers each question much more slowly.

Usage: python benchmarks/listing.py [--files 200000] [--repeats 5] [--write]
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from dassl_clip.cli import train
from dassl_clip.datasets import listings
from dassl_clip.datasets.folders import scan_folder
from dassl_clip.engine import config

RESULTS = Path(__file__).parent / "results"
LIST = Path(train.__file__).resolve().parents[1] / "datasets" / "lists" / "imagenet.json"


def make_tree(root: Path, files: int) -> None:
    """`root/imagenet/images/{train,val}/WNID/*.JPEG`, empty files, one twentieth of them in val."""
    wnids = wordnet_ids()
    for part, count in (("val", files // 20), ("train", files - files // 20)):
        each = [count // len(wnids) + (number < count % len(wnids)) for number in range(len(wnids))]
        for wnid, number in zip(wnids, each):
            folder = root / "imagenet" / "images" / part / wnid
            folder.mkdir(parents=True)
            for place in range(number):
                os.close(os.open(folder / f"{wnid}_{place}.JPEG", os.O_CREAT | os.O_WRONLY))


def wordnet_ids() -> list[str]:
    """The 1,000 folder names of the shipped list, in label order."""
    text = LIST.read_text(encoding="utf-8")
    found = [word for word in text.replace('"', " ").split() if word[0] == "n" and word[1:].rstrip(",:").isdigit()]
    return list(dict.fromkeys(word.rstrip(",:") for word in found))


def load(root: Path, shots: int) -> int:
    """Number of images that the loader hands out."""
    args, pairs = train.parse(
        ["--trainer", "ZeroshotCLIP", "--dataset-config-file", str(LIST.parents[2] / "configs/datasets/imagenet.yaml"),
         "--root", str(root), "--seed", "1", "DATASET.NUM_SHOTS", str(shots)]
    )  # fmt: skip
    from dassl.data.datasets import build_dataset

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(config.resolve_config(args, pairs))
    return len(dataset.train_x) + len(dataset.test)


def at(cache: str, work: Callable[[], int]) -> Callable[[], int]:
    """The work, with the cache folder set to `cache`."""

    def run() -> int:
        os.environ["DASSL_CLIP_CACHE"] = cache
        return work()

    return run


def list_all(root: Path) -> int:
    """Number of files in the folders below the root, as the loader lists them."""
    kept, waiting, files = listings.Listings("ImageNet", str(root), listings.cache_dir()), [str(root)], 0
    while waiting:
        folder = waiting.pop()
        found = kept.get(folder, scan_folder)
        files += len(found.files)
        waiting += [os.path.join(folder, name) for name in found.folders]
    return files


def walk(root: Path) -> int:
    """Number of files that `os.walk` finds."""
    return sum(len(files) for _, _, files in os.walk(root))


def walk_and_ask(root: Path) -> int:
    """The same, asking the disk whether each is a file, as one that checks every image does."""
    return sum(os.path.isfile(os.path.join(place, name)) for place, _, names in os.walk(root) for name in names)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the figures into benchmarks/results/listing.json")
    args = parser.parse_args()
    train.register()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data, cache = root / "data", str(root / "cache")
        make_tree(data, args.files)
        time.sleep(listings.SETTLED / 1e9)
        works: dict[str, Callable[[], int]] = {
            "ImageNet, 16 shots, listed anew": at("off", lambda: load(data, 16)),
            "ImageNet, 16 shots, kept listing": at(cache, lambda: load(data, 16)),
            "ImageNet, all images, listed anew": at("off", lambda: load(data, -1)),
            "ImageNet, all images, kept listing": at(cache, lambda: load(data, -1)),
            "listing alone, anew": at("off", lambda: list_all(data)),
            "listing alone, kept": at(cache, lambda: list_all(data)),
            "os.walk": lambda: walk(data),
            "os.walk and isfile": lambda: walk_and_ask(data),
        }
        at(cache, lambda: load(data, 16))()
        seconds: dict[str, list[float]] = {name: [] for name in works}
        counts: dict[str, int] = {}
        for _ in range(args.repeats):
            for name, work in works.items():
                begin = time.perf_counter()
                counts[name] = work()
                seconds[name].append(time.perf_counter() - begin)
        (entry,) = Path(cache, listings.FOLDER).iterdir()
        size, folders = entry.stat().st_size, sum(1 for _ in os.walk(data))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    plain = median["os.walk and isfile"]
    rows = [[name, counts[name], f"{value:.2f}", f"{plain / value:.1f} x"] for name, value in median.items()]
    print(f"{args.files} files in {folders} folders, median of {args.repeats}; the kept listing has {size:,} bytes")
    print(tabulate(rows, ["way", "images or files", "seconds", "against walk and isfile"]))
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        figures = {"files": args.files, "folders": folders, "repeats": args.repeats, "seconds": median}
        figures |= {"entry_bytes": size, "machine": platform.machine()}
        (RESULTS / "listing.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
