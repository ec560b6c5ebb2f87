"""One process a run folder: who comes first works there, anybody else is told who that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from dassl_clip.results import environment

LOCK_NAME = ".lock"
BUSY_EXIT = 75
_TRIES, _PAUSE = 80, 0.0125  # a second in all: who only looks holds a lock for far less, but may look often
_HELD: set[tuple[int, Path]] = set()
_HANDLES: set[int] = set()


class BusyError(Exception):
    """Another process works in the run folder; the message says which."""

    from_user = True


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a run folder for this process; yields False where another one holds it.

    What holds it already may ask again. The system gives the lock back when a process ends, however that happens.
    """
    key = os.getpid(), folder.resolve()
    if key in _HELD:
        yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    free = False
    try:
        for _ in range(_TRIES):
            if free := _try_lock(handle, fcntl.LOCK_EX):
                break
            time.sleep(_PAUSE)
        if free:
            _HELD.add(key)
            _HANDLES.add(handle)
            _write_holder(handle)
        yield free
    finally:
        _HELD.discard(key)
        if free and handle in _HANDLES:
            os.truncate(handle, 0)
        if not free or handle in _HANDLES:
            os.close(handle)
        _HANDLES.discard(handle)


def _let_go() -> None:
    """In a process that was forked off: a loader's worker that outlives a killed run must not hold its folder."""
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()


os.register_at_fork(after_in_child=_let_go)


def is_locked(folder: Path) -> bool:
    """Whether another process works in a run folder."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def busy_sentence(folder: Path) -> str:
    """Who holds a run folder, and what to do."""
    try:
        holder = json.loads((folder / LOCK_NAME).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{who} works in {folder}: wait for it or end it, or give another --output-dir"


def _write_holder(handle: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": environment.command_line()}
    holder["since"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    os.truncate(handle, 0)
    with contextlib.suppress(OSError):  # a full disk does not hinder the lock itself
        os.pwrite(handle, json.dumps(holder).encode(), 0)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
