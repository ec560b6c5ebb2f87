"""The state of a planned run, read from its folder, and what is done to the folder before the run is made.

State is on the disk: a run is complete when its record is there, running while its lock is held, failed when its last
try left `failed.txt`. A run that another task has made already is taken over: cross-dataset and single-source
generalisation train the same run and evaluate it on other data sets, so whichever comes first makes it.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_clip.engine.fingerprint import config_differences, config_hash
from dassl_clip.results import records
from dassl_clip.results.documents import CONFIG_NAME, read_config
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.protocols import protocol_of

from . import identity, locks
from .plan import Run

LOG_NAME = "log.txt"
FAILURE_NAME = "failed.txt"
COMPLETE, RUNNING, FAILED, REFUSED = "complete", "running", "failed", "refused"
REDO, RESUME, MISSING = "redo", "resume", "missing"
STATES = (COMPLETE, RUNNING, FAILED, REFUSED, REDO, RESUME, MISSING)
UNFINISHED = (REDO, RESUME, MISSING)  # to do, without having failed
_LEFT_THERE = (*locks.NAMES, CONFIG_NAME, records.RECORD_NAME, ".*.tmp")


@dataclass(frozen=True)
class State:
    """What a run's folder holds.

    Attributes:
        name: one of `STATES`: complete (the reason says what could not be compared, if anything); running (another
            process holds the folder); failed; refused (a finished run of another configuration); redo (a broken record;
            a run on other images or files than are there now; what another configuration, or a run on other images,
            left half done); resume (what this configuration left half done); missing.
        reason: why, as one phrase.
        lines: the last lines of a run that failed.
        next_try: what another try of a failed run means: redo, resume or missing.
    """

    name: str
    reason: str = ""
    lines: tuple[str, ...] = ()
    next_try: str = ""


def state_of(run: Run) -> State:
    """The state of a planned run."""
    found = records.inspect_record(run.folder)
    if found.record is not None and found.record["config_hash"] == config_hash(run.config):
        changed, unknown = identity.changed_since(found.record, run.folder, run.config)
        if not changed:
            return State(COMPLETE, unknown)
        left = State(REDO, changed)
    elif found.record is not None:
        previous = read_config(run.folder)
        differences = config_differences(previous, run.config) if previous is not None else []
        what = identity.shortened(differences) or "its configuration hash is another one"
        way_out = "move it away, or choose another --out"
        return State(REFUSED, f"{run.folder} holds a finished run of another configuration ({what}); {way_out}")
    elif found.state == "broken":
        left = State(REDO, found.reason)
    elif other := identity.left_by_others(run.folder, run.config):
        left = State(REDO, f"an unfinished run of {other} is moved aside")
    elif read_config(run.folder) is not None:
        left = State(RESUME, "resuming an unfinished run")
    else:
        left = State(MISSING)
    if locks.is_locked(run.folder):
        return State(RUNNING)
    failure = run.folder / FAILURE_NAME
    if failure.is_file():
        return State(FAILED, left.reason, tuple(failure.read_text(encoding="utf-8").splitlines()), left.name)
    return left


def is_complete(run: Run) -> bool:
    """Whether a planned run is finished, with the files and images that are there now."""
    return state_of(run).name == COMPLETE


def count_states(states: Iterable[State]) -> str:
    """`12 complete, 3 missing`."""
    counts = Counter(state.name for state in states)
    return ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])


def run_id(run: Run) -> str:
    """The stable id of a run: the first digits of the hash of its configuration."""
    return config_hash(run.config)[:12]


# ----------------------------------------------------------------------------------------------------- the folder


def prepare_folder(folder: Path, config: Any) -> None:
    """Move aside what must not be mixed with a new run: what another run left behind, or a broken record."""
    (folder / FAILURE_NAME).unlink(missing_ok=True)
    found = records.inspect_record(folder)
    finished = found.record is not None and identity.changed_since(found.record, folder, config)[0]
    if finished or identity.left_by_others(folder, config):
        set_aside(folder)
    elif (record := folder / records.RECORD_NAME).exists():
        record.rename(identity.free_name(record, "broken"))


def set_aside(folder: Path) -> None:
    """Move what a run's folder holds to one beside it, under the first free name; nothing is lost.

    The configuration, which tells what the rest belongs to, goes last.
    """
    content = [path for path in folder.iterdir() if path.name not in locks.NAMES]
    if content:
        aside = identity.free_name(folder, "stale")
        aside.mkdir()
        for path in sorted(content, key=lambda path: path.name == CONFIG_NAME):
            path.rename(aside / path.name)


def note_failure(folder: Path, code: int, lines: Sequence[str]) -> None:
    """Leave a failed run's exit code and last lines in its folder; the next try removes them."""
    with contextlib.suppress(OSError):  # the disk that failed the run may fail this, too; its log is named anyway
        write_text_atomically(folder / FAILURE_NAME, "\n".join([f"exit code {code}", *lines]) + "\n")


def log_file(run: Run) -> Path:
    """The log that a run wrote last."""
    logs = sorted(run.folder.glob(f"{LOG_NAME}*"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else run.folder / LOG_NAME


# ------------------------------------------------------------------------------------- runs that another task has made


def take_over(runs: Sequence[Run]) -> list[Run]:
    """Copy what was made under another task, and tell of it; returns the runs that are left to do."""
    left = []
    for run in runs:
        if (source := _same_run(run)) and _copy_run(source, run):
            print(f"taken over: {run.name} from {source}, which is the same run", flush=True)
        else:
            left.append(run)
    return left


def part_twins(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs to make, and those that can be taken over from one of these once it is there."""
    first: dict[Path, Run] = {}
    later = []
    for run in runs:
        if any(folder in first for folder in run.twins):
            later.append(run)
        else:
            first[run.folder] = run
    return list(first.values()), later


def _same_run(run: Run) -> Path | None:
    """The folder of a finished run of the same configuration, files and images under another task, if any."""
    for folder in run.twins:
        record = records.read_record(folder)
        if record is not None and record["config_hash"] == config_hash(run.config):
            changed, unknown = identity.changed_since(record, folder, run.config)
            if not changed and not unknown:
                return folder
    return None


def _copy_run(source: Path, run: Run) -> bool:
    """Make `run` of a finished one; its record, written last, names the source. False where others work on it."""
    record = records.read_record(source)
    with locks.lock(run.folder) as free:
        if not free or record is None:
            return False
        set_aside(run.folder)
        shutil.copytree(source, run.folder, ignore=shutil.ignore_patterns(*_LEFT_THERE), dirs_exist_ok=True)
        write_text_atomically(run.folder / CONFIG_NAME, run.config.dump())
        facts = {"task": run.task, "taken_over_from": str(source)}
        if record["protocol"] == protocol_of([], [], record["task"]):
            facts["protocol"] = protocol_of([], [], run.task)
        records.write_record(run.folder, record | facts)
    return True
