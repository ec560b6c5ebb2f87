"""A run that was made under another task already: its folder is copied instead of computing the same again.

Cross-dataset and single-source generalisation train the same run (the papers': on ImageNet) and evaluate it on other
data sets. Which of the two comes first makes the run; the other one takes it over, if both ask for the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dassl_clip.results import records

from . import identity, locks, plan
from .identity import CONFIG_NAME

LEFT_THERE = (*locks.NAMES, CONFIG_NAME, records.RECORD_NAME, ".*.tmp")


def take_over(runs: Sequence[plan.Run]) -> list[plan.Run]:
    """Copy what was made under another task, and tell of it; returns the runs that are left to do."""
    left = []
    for run in runs:
        source = same_run(run)
        if source is None or not copy_run(source, run):
            left.append(run)
        else:
            print(f"taken over: {run.name} from {source}, which is the same run", flush=True)
    return left


def part_twins(runs: Sequence[plan.Run]) -> tuple[list[plan.Run], list[plan.Run]]:
    """The runs to make, and those that can be taken over from one of these once it is there."""
    made: dict[Path, plan.Run] = {}
    later = []
    for run in runs:
        if any(folder in made for folder in run.twins):
            later.append(run)
        else:
            made[run.folder] = run
    return list(made.values()), later


def same_run(run: plan.Run) -> Path | None:
    """The folder of a finished run of the same configuration, files and images under another task, if any."""
    wanted = records.config_hash(run.cfg)
    for folder in run.twins:
        record = records.read_record(folder)
        if record is not None and record["config_hash"] == wanted:
            changed, unknown = identity.changed_since(record, folder, run.cfg)
            if not changed and not unknown:
                return folder
    return None


def copy_run(source: Path, run: plan.Run) -> bool:
    """Make `run` of a finished one; its record, written last, names the source. False where others work on it."""
    record = records.read_record(source)
    with locks.lock(run.folder) as free:
        if not free or record is None:
            return False
        set_aside(run.folder)
        shutil.copytree(source, run.folder, ignore=shutil.ignore_patterns(*LEFT_THERE), dirs_exist_ok=True)
        records.write_text_atomically(run.folder / CONFIG_NAME, run.cfg.dump())
        own = {"task": run.task, "taken_over_from": str(source)}
        if record["protocol"] == records.protocol_of([], [], record["task"]):
            own["protocol"] = records.protocol_of([], [], run.task)
        records.write_record(run.folder, record | own)
    return True


def set_aside(folder: Path) -> None:
    """Move what a run's folder holds to one beside it, under the first free name; nothing is lost.

    The configuration, which tells what the rest belongs to, goes last.
    """
    content = [path for path in folder.iterdir() if path.name not in locks.NAMES]
    if content:
        aside = free_name(folder, "stale")
        aside.mkdir()
        for path in sorted(content, key=lambda path: path.name == CONFIG_NAME):
            path.rename(aside / path.name)


def free_name(path: Path, word: str) -> Path:
    """The first name `<path>.<word>-<number>` that does not exist."""
    number = 1
    while path.with_name(f"{path.name}.{word}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{word}-{number}")
