"""The command line `dassl-clip`: one sub-command a module, imported when it is used."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from dassl_clip.engine.errors import USAGE_EXIT, safe_console
from dassl_clip.engine.paths import leave_checkout
from dassl_clip.results.errors import did_you_mean

COMMANDS = {
    "train": "one run: the flags of train.py",
    "task": "a whole task of one method on one data set, with a table at the end",
    "compare": "several methods on one data set: run what is missing, print the tables",
    "diagnose": "which methods have something to repair on a data set, without training any",
    "eval": "what a finished run learned, tested on other images",
    "data": "the data sets on the disk: list, verify, inspect, links",
    "sweep": "all runs of a table, wherever they go: local, a run a GPU, slurm",
    "table": "a paper's table with ours beside it, or all that has been run, from the records",
    "plot": "figures from records, saved predictions and saved features",
    "report": "one page with the tables, figures, settings and gaps of all runs of a folder",
    "predict": "classify pictures of your own with a finished run, or with class names alone",
    "export": "a finished run as one small file, and what such a file holds",
    "interpret": "the words nearest to a learned context",
    "completion": "a script for the shell that completes all these words",
    "backbones": "the architectures of open_clip: how fast prompts are read, which tokenizer",
    "check": "what a method was allowed to see, and which rules it breaks: any trainer, on a few icons",
    "doctor": "what of the installation works, and what to do about the rest",
    "cache": "the cached features: list, remove",
}


USAGE = f"""usage: dassl-clip COMMAND [arguments]

CLIP adaptation under domain shift for the Dassl toolbox.

commands:
{chr(10).join(f"  {name:<{max(map(len, COMMANDS))}}  {text}" for name, text in COMMANDS.items())}

`dassl-clip COMMAND --help` explains one.
To begin: dassl-clip task METHOD icons 1"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments to a sub-command and return its exit code."""
    leave_checkout()
    with safe_console():
        return _dispatch(*(list(sys.argv[1:] if argv is None else argv) or ["--help"]))


def _dispatch(name: str, *rest: str) -> int:
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(importlib.metadata.version("dassl-clip"))
        return 0
    if name not in COMMANDS:
        known = f"{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}."
        print(f"error: there is no command '{name}'.{known}", file=sys.stderr)
        return USAGE_EXIT
    return int(importlib.import_module(f"dassl_clip.cli.{name}").main(list(rest)))


if __name__ == "__main__":
    sys.exit(main())
