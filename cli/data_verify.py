"""`dassl-clip data verify NAME --root DIR`: whether a folder holds a data set, and what is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from dassl_clip.cli.data_names import open_config
from dassl_clip.results.errors import UserError

VERDICTS = ("fits", "can be used, with warnings", "cannot be used as it is")


def run(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Print what was found; 0 fits, 1 warns, 2 unusable."""
    from dassl_clip.datasets.make_split import make_split
    from dassl_clip.datasets.verify import verify

    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least 1 thread must decode")
    loader, cfg = open_config(args.name, args.root, pairs)
    if args.make_split is not None:
        path = make_split(loader, cfg, args.seed, args.make_split)
        print(f"Wrote {path}, to be used by DATASET.SPLIT_FILE {path}; results on it are not comparable")
        cfg.DATASET.SPLIT_FILE = str(path)
    report = verify(loader, cfg, args.decode, args.duplicates, args.jobs, progress)
    print(f"{report.dataset} in {report.root or ('the package' if report.images else 'no folder')}")
    for text in report.layouts:
        print(f"layout: {text}")
    if report.counts:
        print(f"\n{counts_table(report)}\n")
    if args.classes and report.counts:
        print(f"{classes_table(report)}\n")
    for finding in report.findings:
        print(f"{finding.level}: {finding.text}")
    print(f"{report.dataset} {VERDICTS[report.verdict]}.")
    return report.verdict


def progress(items: Iterable, total: int, what: str) -> Iterable:
    """A bar on stderr, if that is a terminal."""
    return tqdm(items, total=total, desc=what, unit=" files", disable=not sys.stderr.isatty())


def counts_table(report: Any) -> str:
    """Domains or parts by classes and images, beside the published numbers."""
    parts = list(dict.fromkeys(part for count in report.counts for part in count.parts))
    rows = []
    for count in report.counts:
        images = sum(count.images.values())
        published = "" if count.published is None else f"{count.published:,}"
        present = sum(number > 0 for number in count.images.values())
        row = [count.name, f"{present} of {len(report.classes)}", f"{images:,}", published]
        rows.append([*row, *(f"{count.parts[part]:,}" if part in count.parts else "" for part in parts)])
    if len(rows) > 1:
        total = [sum(sum(count.images.values()) for count in report.counts)]
        total.append(sum(count.published or 0 for count in report.counts))
        known = all(count.published is not None for count in report.counts)
        sums = [sum(count.parts.get(part, 0) for count in report.counts) for part in parts]
        rows.append(["all", "", f"{total[0]:,}", f"{total[1]:,}" if known else "", *(f"{number:,}" for number in sums)])
    rows += [[name, "not read"] for name in report.unread]
    columns = ["domain" if parts else "part", "classes", "images", "published", *parts]
    return tabulate(rows, columns, colalign=("left", *["right"] * (len(columns) - 1)), disable_numparse=True)


def classes_table(report: Any) -> str:
    """Classes in label order by domains or parts."""
    rows = [
        [str(label), name, *(f"{count.images.get(label, 0):,}" for count in report.counts)]
        for label, name in enumerate(report.classes)
    ]
    columns = ["label", "class", *(count.name for count in report.counts)]
    return tabulate(rows, columns, colalign=("right", "left", *["right"] * len(report.counts)), disable_numparse=True)
