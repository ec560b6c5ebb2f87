"""Locks of run folders and of the cache: one process at a time, whatever users remove and file systems lack.

Covers `experiments/locks.py` and `results/locking.py` between processes: a `.lock` that is removed while it is held,
file systems without `flock` (the system call refuses), killed holders, and who is named. Forks and busy runs of the
command line are in tests/engine/test_resume.py, looks at a lock in test_sweep.py.
"""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
from contextlib import contextmanager

import pytest

from dassl_clip.experiments import locks
from dassl_clip.results import locking


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """How long a held folder is asked for."""
    monkeypatch.setattr(locks, "_SECONDS", 0.1)


def hold(folder, refused, told, done):
    """Hold a folder until `done`; tells whether it was free."""
    if refused:
        fcntl.flock = lambda *given: refuse(refused)
    with locks.lock(folder) as free:
        told.send(free)
        done.recv()


@contextmanager
def another_process(folder, refused=0):
    """A process that holds the folder, or was refused, on a file system that refuses `flock` with that number."""
    fork = multiprocessing.get_context("fork")
    (read, told), (done, end) = fork.Pipe(duplex=False), fork.Pipe(duplex=False)
    other = fork.Process(target=hold, args=(folder, refused, told, done))
    other.start()
    other.free = read.recv()
    try:
        yield other
    finally:
        end.send("done")
        other.join()


@pytest.mark.parametrize("removed", [(".lock",), (".lock", ".lock.json"), (".lock", ".lock.json", ".lock.soft")])
def test_1_7_a_lock_that_is_removed_while_it_is_held_lets_nobody_in(tmp_path, removed):
    """(row 1.7) Neither another process nor this one, and the folder still counts as in use."""
    with another_process(tmp_path) as other:
        assert other.free and locks.is_locked(tmp_path)
        for name in removed:
            (tmp_path / name).unlink(missing_ok=True)
        assert locks.is_locked(tmp_path)
        with locks.lock(tmp_path) as free:
            assert not free
        with another_process(tmp_path) as third:
            assert not third.free
        assert locks.is_locked(tmp_path)
        named = f"process {other.pid} on " if ".lock.json" not in removed else "another process works in "
        assert locks.busy_sentence(tmp_path).startswith(named)
    assert not locks.is_locked(tmp_path)
    with locks.lock(tmp_path) as free:
        assert free and json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
        with another_process(tmp_path) as third:
            assert not third.free
    assert not (tmp_path / ".lock.json").exists()


def refuse(number):
    raise OSError(number, os.strerror(number))


def refuse_flock(monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", lambda *given: refuse(number))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_1_7_where_flock_is_not_supported_a_soft_lock_takes_its_place(tmp_path, monkeypatch, caplog, number):
    """(row 1.7) NFS without its lock service, Lustre: one process at a time, and a killed one is no hindrance."""
    refuse_flock(monkeypatch, number)
    assert not locks.is_locked(tmp_path)
    with caplog.at_level(logging.WARNING, logger="dassl_clip"), another_process(tmp_path, number) as other:
        assert other.free and locks.is_locked(tmp_path)
        with locks.lock(tmp_path) as free:
            assert not free
        assert f"process {other.pid} on " in locks.busy_sentence(tmp_path)
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with locks.lock(tmp_path) as free:
        assert free and locks.is_locked(tmp_path)
        with another_process(tmp_path, number) as third:
            assert not third.free
    assert not locks.is_locked(tmp_path)
    with locks.lock(tmp_path) as free:
        assert free
    if number != errno.ENOSYS:  # there the library itself falls back, and warns
        assert caplog.text.count("does not support flock") == 1 and str(tmp_path) in caplog.text


def test_1_7_an_error_that_is_none_of_the_file_system_is_told(tmp_path, monkeypatch):
    refuse_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        locking.acquire(tmp_path / "file", 0.0)


def test_a_lock_can_be_removed_by_its_holder(tmp_path):
    for _ in range(3):
        held = locking.acquire(tmp_path / "x.lock", 0.0)
        held.release(remove=True)
        assert list(tmp_path.iterdir()) == []
