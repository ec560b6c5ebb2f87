"""Means of the results in the logs of several runs (seeds) of one experiment.

    python parse_test_res.py output/my_experiment

reads `output/my_experiment/<run>/log.txt` for every run, and takes the last `* accuracy: NUMBER%` behind the line
`Finish training`. With --multi-exp every folder of the directory is an experiment of its own. Logs of pure evaluation
need --test-log.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
from collections.abc import Sequence

from dassl.utils import listdir_nohidden

NUMBER = r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)"


def read_result(fpath: str, keyword: str, end_signal: str) -> float | None:
    """The last `* KEYWORD: NUMBER%` of a log, after the line that equals `end_signal`; None if there is none."""
    pattern = re.compile(rf"\* {re.escape(keyword)}: {NUMBER}%")
    found, reached = None, False
    with open(fpath, encoding="utf-8") as file:
        for line in map(str.strip, file):
            reached = reached or line == end_signal
            match = pattern.search(line) if reached else None
            found = float(match[1]) if match else found
    return found


def compute_spread(values: Sequence[float], ci95: bool) -> float:
    """Population standard deviation, or 1.96 of it over the root of the number."""
    deviation = statistics.pstdev(values)
    return 1.96 * deviation / math.sqrt(len(values)) if ci95 else deviation


def parse_experiment(directory: str, keyword: str, end_signal: str, ci95: bool) -> float:
    """Prints the result of each run in a directory, and their mean and spread; returns the mean.

    Raises:
        FileNotFoundError: A run has no log.
        ValueError: No log holds a result.
    """
    print(f"Parsing files in {directory}")
    values = []
    for name in listdir_nohidden(directory, sort=True):
        folder = os.path.join(directory, name)
        if not os.path.isdir(folder):
            continue
        fpath = os.path.join(folder, "log.txt")
        if not os.path.isfile(fpath):
            raise FileNotFoundError(f'There is no log "{fpath}"; every folder of {directory} must be a run')
        value = read_result(fpath, keyword, end_signal)
        if value is not None:
            print(f"file: {fpath}. {keyword}: {value:.2f}%. ")
            values.append(value)
    if not values:
        raise ValueError(f'Nothing found in {directory}: no log has "* {keyword}: NUMBER%" after "{end_signal}"')
    mean = statistics.fmean(values)
    print(f"* average {keyword}: {mean:.2f}% +- {compute_spread(values, ci95):.2f}%")
    print("===")
    return mean


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="folder of an experiment: one folder a run")
    parser.add_argument("--ci95", action="store_true", help="half width of the 95%% confidence interval for the spread")
    parser.add_argument("--test-log", action="store_true", help="logs of evaluation, without training")
    parser.add_argument("--multi-exp", action="store_true", help="the directory holds several experiments")
    parser.add_argument("--keyword", default="accuracy", help="name of the result")
    args = parser.parse_args(argv)
    end_signal = "=> result" if args.test_log else "Finish training"

    if not args.multi_exp:
        parse_experiment(args.directory, args.keyword, end_signal, args.ci95)
        return
    folders = [os.path.join(args.directory, name) for name in listdir_nohidden(args.directory, sort=True)]
    means = [
        parse_experiment(folder, args.keyword, end_signal, args.ci95) for folder in folders if os.path.isdir(folder)
    ]
    print("Average performance")
    print(f"* {args.keyword}: {statistics.fmean(means):.2f}%")


if __name__ == "__main__":
    main()
