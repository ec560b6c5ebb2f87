"""How much of the code a reader meets: files and moves of one training step and one sweep, methods, lines.

    python -m tools.measure_structure                    this checkout, as a markdown table
    python -m tools.measure_structure --beside old.json  with the figures of another checkout as a column before it
    python -m tools.measure_structure --json             as JSON, for --beside

Run it with the environment in which the checkout is installed. What is counted:

- *step*: GOPro on 4 images of the icons, from the second `forward_backward` to the third: the step, the loop around it
  and the loader. A file is entered when one of its functions is called; a move is a call or a return from a function of
  one file to a function of another, with frames of libraries between them left out.
- *sweep*: `dassl-clip sweep icons` into an empty folder, until the first run is started.
- *methods*: the functions and properties that our classes define over the MRO of GOPro, overridden ones counted again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PACKAGES = ("clip", "modeling", "engine", "trainers", "datasets", "results", "experiments", "cli", "commands")


class Reached(BaseException):
    """The point up to which something is measured; a BaseException, so that nothing on the way handles it."""


class Recorder:
    """A profiler that follows which of the files below `folders` the main thread's functions stand in."""

    def __init__(self, folders: list[Path]):
        self.folders = tuple(f"{folder}/" for folder in folders)
        self.files: set[str] = set()
        self.stack: set[str] = set()
        self.moves = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "return") or not self.is_ours(frame):
            return
        file, caller = frame.f_code.co_filename, frame.f_back
        if event == "call":
            self.files.add(file)
        while caller is not None and not self.is_ours(caller):
            caller = caller.f_back
        self.moves += caller is not None and caller.f_code.co_filename != file

    def is_ours(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(self.folders)


@contextlib.contextmanager
def profiled(recorder: Recorder) -> Iterator[None]:
    """Everything is recorded in here, up to the point reached; what is printed is left out."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except Reached:
            return
        finally:
            sys.setprofile(None)
    raise SystemExit("the point up to which it is measured was not reached")


def measure_step(root: Path, folders: list[Path]) -> Recorder:
    """One iteration of the training loop."""
    train = importlib.import_module(f"dassl_clip.{'cli' if (root / 'cli').is_dir() else 'commands'}.train")
    cls, steps, recorder = gopro_class(), 0, Recorder(folders)
    step = cls.forward_backward

    def forward_backward(self, batch):
        nonlocal steps
        steps += 1
        if steps == 3:
            sys.setprofile(None)  # what the exception passes through is no part of the step
            raise Reached
        if steps == 2:
            sys.setprofile(recorder)
        return step(self, batch)

    cls.forward_backward = forward_backward
    words = ["--trainer", "GOPro", "--config-file", f"{root}/configs/trainers/GOPro/icons.yaml", "--seed", "1"]
    words += ["--dataset-config-file", f"{root}/configs/datasets/icons.yaml", "--task", "fewshot"]
    words += ["--source-domains", "line", "--target-domains", "line"]
    with tempfile.TemporaryDirectory() as folder, profiled(recorder):
        train.main([*words, "--output-dir", folder, "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATASET.NUM_SHOTS", "1"])
    cls.forward_backward = step
    return recorder


def measure_sweep(root: Path, folders: list[Path]) -> Recorder:
    """From the command line to the first run."""
    main = importlib.import_module(f"dassl_clip.{'cli' if (root / 'cli').is_dir() else 'commands'}.__main__").main
    for file in (file for folder in folders for file in folder.rglob("*.py")):  # what is imported late is not entered
        if file.stem not in ("__init__", "__main__"):
            importlib.import_module(".".join(("dassl_clip", *file.relative_to(root).with_suffix("").parts)))
    recorder = Recorder(folders)

    def started(*_: object) -> None:
        frame = sys._getframe()
        while frame := frame.f_back:
            if recorder.is_ours(frame):
                recorder.stack.add(frame.f_code.co_filename)
        raise Reached

    multiprocessing.process.BaseProcess.start = os.fork = started
    with tempfile.TemporaryDirectory() as folder, profiled(recorder):
        sys.setprofile(recorder)
        main(["sweep", "icons", "--out", folder, "--jobs", "1"])
    return recorder


def gopro_class() -> type:
    importlib.import_module("dassl_clip.trainers")
    from dassl.engine import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get("GOPro")


def methods_of(cls: type) -> tuple[int, int]:
    """How many methods classes of ours define, and how many classes."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("dassl_clip.")]
    kinds = (type(methods_of), staticmethod, classmethod, property)
    return sum(isinstance(value, kinds) for base in ours for value in vars(base).values()), len(ours)


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.py"))


def measure(root: Path) -> dict[str, int]:
    """All figures of a checkout, by the words of the table."""
    ours = [root / name for name in PACKAGES]
    alone, whole = measure_step(root, ours), measure_step(root, [*ours, root / "toolbox"])
    sweep = measure_sweep(root, ours)
    methods, classes = methods_of(gopro_class())
    figures = {
        "files of ours in a GOPro step": len(alone.files),
        "moves between them": alone.moves,
        "files in a GOPro step, toolbox included": len(whole.files),
        "moves, toolbox included": whole.moves,
        "files of ours on the call stack where `sweep icons` starts its first run": len(sweep.stack),
        "files of ours entered until then": len(sweep.files),
        "methods of a GOPro object that are ours": methods,
        "classes of ours in its MRO": classes,
    }
    counts = {f"lines of `{name}/`": lines(root / name) for name in PACKAGES}
    total = {"lines of these packages": sum(counts.values()), "lines of `tests/`": lines(root / "tests")}
    return {**figures, **counts, **total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="JSON of another checkout: the column before")
    args = parser.parse_args()
    package = importlib.import_module("dassl_clip.results")
    root = Path(package.__file__).resolve().parents[1]
    os.chdir(root)
    after = measure(root)
    if args.json:
        print(json.dumps(after, indent=1))
        return
    columns = [json.loads(args.beside.read_text()), after] if args.beside else [after]
    print("| figure | before | after |\n|---|---|---|" if args.beside else "| figure | |\n|---|---|")
    for name in after:
        figures = [column.get(name, 0) for column in columns]
        print(f"| {name} | " + " | ".join(f"{figure:,}" if figure else "" for figure in figures) + " |")


if __name__ == "__main__":
    main()
