"""One process per run folder: the first one holds the lock, any other gets an error that names it.

Two locks are taken. That on the file `.lock` (`results/locking.py`) holds between all machines that share the folder.
That on the folder itself (`flock` of a directory) holds between the processes of one machine, and still does when
somebody removes `.lock`. A process of another machine gets in if `.lock` is removed while it is held. `.lock.json`
says who holds the folder.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from dassl_clip.results import environment, locking
from dassl_clip.results.files import write_text_atomically

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock.json"
NAMES = (LOCK_NAME, HOLDER_NAME, locking.soft_path(Path(LOCK_NAME)).name)
BUSY_EXIT = 75
_SECONDS = 1.0  # who only looks holds a lock for far less, but may look often
_HELD: set[tuple[int, Path]] = set()
_HANDLES: set[int] = set()  # of folders that this process holds


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
    held = locking.acquire(folder / LOCK_NAME, _SECONDS)
    if held is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    free = False
    try:
        end = time.monotonic() + _SECONDS
        while (locked := _try_lock(handle, fcntl.LOCK_EX)) is False and time.monotonic() < end:
            time.sleep(locking.PAUSE)
        if free := locked is not False:  # None: not supported here
            _HELD.add(key)
            _HANDLES.add(handle)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": environment.command_line()}
            holder["since"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            with contextlib.suppress(OSError):  # a full disk does not hinder the lock itself
                write_text_atomically(folder / HOLDER_NAME, json.dumps(holder))
        yield free
    finally:
        _HELD.discard(key)
        if free and handle in _HANDLES:  # else this is a process that was forked off
            with contextlib.suppress(OSError):
                (folder / HOLDER_NAME).unlink(missing_ok=True)
        if not free or handle in _HANDLES:
            os.close(handle)
        _HANDLES.discard(handle)
        held.release()


def _let_go() -> None:
    """In a process that was forked off: a loader's worker that outlives a killed run must not hold its folder."""
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()


os.register_at_fork(after_in_child=_let_go)


def is_locked(folder: Path) -> bool:
    """Whether a process works in a run folder."""
    if (os.getpid(), folder.resolve()) in _HELD:
        return True
    supported = True
    for path in (folder, folder / LOCK_NAME):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            free = _try_lock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)
        if free is False:
            return True
        supported = supported and free is not None
    if not supported and any((folder / name).exists() for name in NAMES):
        with contextlib.suppress(OSError):  # a folder that can only be read
            held = locking.acquire(folder / LOCK_NAME, 0.0)
            if held is None:
                return True
            held.release()
    return False


def busy_sentence(folder: Path) -> str:
    """Who holds a run folder, and what to do."""
    try:
        holder = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    soft = locking.soft_path(folder / LOCK_NAME)
    gone = f", or remove {soft} if that process is gone" if soft.exists() else ""
    return f"{who} works in {folder}: wait for it or end it, or give another --output-dir{gone}"


def _try_lock(handle: int, kind: int) -> bool | None:
    """Lock an open file or folder; False where another process holds it, None where that is not supported."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
