"""A lock that one process at a time holds: `flock` through the library `filelock`, or its soft lock.

Where a file system does not support `flock` (NFS without its lock service, Lustre mounted without it), the soft lock
takes its place: the file `<path>.soft`, which exists while the lock is held. The system gives `flock` back whenever a
process ends. A soft lock outlives a process that is killed; `filelock` removes that of a dead process of the same
machine, and of other machines the user has to.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

logger = logging.getLogger(__name__)

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
PAUSE = 0.0125  # seconds between two attempts


@dataclass(frozen=True)
class Held:
    """A lock that this process holds.

    Attributes:
        path: The lock's file.
        lock: The library's lock.
        owner: The process that took it; one that was forked off gives back nothing.
    """

    path: Path
    lock: BaseFileLock
    owner: int

    def release(self, remove: bool = False) -> None:
        """Give the lock back, and remove its file if nobody needs it any more."""
        if os.getpid() == self.owner:
            if remove:
                self.path.unlink(missing_ok=True)
            self.lock.release()


def acquire(path: Path, seconds: float) -> Held | None:
    """Take the lock at a path, or None if another process holds it for that long.

    Args:
        path: The lock's file, in a folder that exists.
        seconds: How long to wait; 0 tries once.

    Raises:
        OSError: No file can be made there.
    """
    try:
        return _acquire(FileLock(str(path)), path, seconds)
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, NotImplementedError) and error.errno not in UNSUPPORTED:
            raise
        _warn_of_soft_lock(path.parent, str(error))
        return _acquire(SoftFileLock(str(soft_path(path))), path, seconds)


def soft_path(path: Path) -> Path:
    """The file that stands for a lock where `flock` is not supported."""
    return path.with_name(f"{path.name}.soft")


def _acquire(lock: BaseFileLock, path: Path, seconds: float) -> Held | None:
    try:
        lock.acquire(timeout=seconds, poll_interval=PAUSE)
    except Timeout:
        return None
    return Held(path, lock, os.getpid())


@functools.cache
def _warn_of_soft_lock(folder: Path, reason: str) -> None:
    logger.warning(
        "%s does not support flock (%s): files that end in .soft take the place of locks there. One that a killed "
        "process of another machine has left must be removed by hand",
        folder,
        reason,
    )
