"""Listings of folders, kept between runs: a large data set is listed once, and later runs ask about its folders alone.

An entry is a file `listings/<hash>.json.gz` in the cache folder, one for each data set and DATASET.ROOT. It holds the
names in each folder that the loader listed, with the folder's fingerprint: device, inode, size, and the times at which
its content (mtime) and its status (ctime) changed last, in nanoseconds. A later run asks the disk for the fingerprint
of each folder that it lists, which is 2,000 questions for ImageNet's 1,331,167 images, and takes the names from the
entry where it is unchanged; other folders are listed anew. So a name that was added, removed or renamed is seen, at
any depth, since it changes the mtime of its own folder; so is a folder in another's place (another inode), a link that
leads elsewhere, and a folder whose mtime was set back (another ctime).

What is not kept, and read from the disk by each run:
- A folder that changed within the two seconds before it was listed: where a file system counts times coarsely, a
  second change might leave the fingerprint as it is.
- A folder with links in it: whether a link leads to a file, a folder or nowhere is no property of the folder.
- Data sets with few names (`LEAST`), since nothing would be gained.

What is not seen: a file whose content is replaced under its old name, which changes no listing; and a change on a file
system that does not change a folder's times with its names. A network file system may show old times for as long as it
shows old names (`acdirmax` of NFS). `dassl-clip data verify` and DASSL_CLIP_CACHE=off list afresh. Nothing but names is
ever kept, an entry that cannot be read whole is removed with a warning, and no pickles are written or read.
"""

import contextlib
import gzip
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import CACHE_VARIABLE, cache_dir

from .cache import write_bytes

logger = logging.getLogger(__name__)

FOLDER = "listings"
ENDING = ".json.gz"
VERSION = 1
LEAST = 20_000  # names that must be new for an entry to be written
SETTLED = 2_000_000_000  # nanoseconds for which a folder must have been as it is

Fingerprint = tuple[int, ...]


class Listing(NamedTuple):
    """Sorted names in a folder, and whether links are among them."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    links: bool


class Listings:
    """The listings that one loader uses: each folder is listed once, or taken from the entry of an earlier run.

    Args:
        dataset: registry name.
        root: DATASET.ROOT.
        folder: the cache folder; None reads and writes no entry.
        least: names that must be new for an entry to be written.
    """

    def __init__(self, dataset: str, root: str, folder: Path | None, least: int = LEAST) -> None:
        self.facts = {"version": VERSION, "dataset": dataset, "root": os.path.abspath(os.path.expanduser(root))}
        name = hashlib.sha256(json.dumps(self.facts).encode()).hexdigest()
        self.path = None if folder is None else folder / FOLDER / f"{name}{ENDING}"
        self.least = least
        self._seen: dict[str, Listing] = {}
        self._fresh: dict[str, tuple[Fingerprint, Listing]] = {}
        self._stored = {} if self.path is None else read_entry(self.path, self.facts)
        self._reused = 0

    def get(self, folder: str, scan: Callable[[str], Listing]) -> Listing:
        """The names in a folder.

        Args:
            folder: its path.
            scan: lists a folder on the disk.

        Raises:
            OSError: if the folder cannot be read.
        """
        if folder not in self._seen:
            self._seen[folder] = self._look(folder, scan)
        return self._seen[folder]

    def _look(self, folder: str, scan: Callable[[str], Listing]) -> Listing:
        """The names in a folder, from the entry if its fingerprint is unchanged."""
        mark, kept = fingerprint(folder), self._stored.get(folder)
        if kept is not None and kept[0] == mark:
            self._reused += 1
            return kept[1]
        began = time.time_ns()
        listing = scan(folder)
        if not listing.links and began - max(mark[-2:]) > SETTLED and fingerprint(folder) == mark:
            self._fresh[folder] = (mark, listing)
        return listing

    def save(self) -> None:
        """Write the entry if enough names are new; folders not listed now stay in it while they are as they were."""
        if self.path is None:
            return
        if self._reused:
            logger.info("%d of %d folders are as %s has them", self._reused, len(self._seen), self.path)
        if sum(len(listing.files) for _, listing in self._fresh.values()) < self.least:
            if self._reused:
                with contextlib.suppress(OSError):
                    os.utime(self.path)  # the time of last use, for clearing up
            return
        kept = {folder: entry for folder, entry in self._stored.items() if self._holds(folder, entry[0])}
        try:
            write_entry(self.path, self.facts, kept | self._fresh)
        except OSError as error:
            logger.info("listings are not kept (%s); %s names a folder for them", error, CACHE_VARIABLE)

    def _holds(self, folder: str, mark: Fingerprint) -> bool:
        """Whether a stored folder is as it was."""
        try:
            return fingerprint(folder) == mark
        except OSError:
            return False


def fingerprint(folder: str) -> Fingerprint:
    """Device, inode, size, mtime and ctime of a folder; links are followed.

    Raises:
        OSError: if there is no such folder, or it may not be asked for.
    """
    status = os.stat(folder)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def write_entry(path: Path, facts: dict[str, object], entry: dict[str, tuple[Fingerprint, Listing]]) -> None:
    """Write an entry: a line of facts, and a line with all folders; names are joined by `/`, which none can hold.

    Raises:
        OSError: if it cannot be written.
    """
    counts = {"folders": len(entry), "names": sum(len(listing.files) for _, listing in entry.values())}
    folders = {
        folder: [*mark, "/".join(listing.folders), "/".join(listing.files)] for folder, (mark, listing) in entry.items()
    }
    text = f"{json.dumps({**facts, **counts})}\n{json.dumps(folders)}\n"
    write_bytes(path, gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))


def read_entry(path: Path, facts: dict[str, object]) -> dict[str, tuple[Fingerprint, Listing]]:
    """The folders of an entry; none if there is no file. One that is not whole, or of something else, is removed.

    Args:
        path: its file.
        facts: what must stand in it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("%s cannot be read and is not used: %s", path, error.strerror)
        return {}
    try:
        first, second = gzip.decompress(content).decode("ascii").splitlines()
        found = json.loads(first)
        if {key: found[key] for key in facts} != facts:
            raise UserError(f"it is of {found}")
        return {str(folder): parse(row) for folder, row in json.loads(second).items()}
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s holds no listings and is made again: %s", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return {}


def parse(row: list) -> tuple[Fingerprint, Listing]:
    """Fingerprint and names of one folder of an entry.

    Raises:
        ValueError, TypeError, AttributeError: if it is none.
    """
    *mark, folders, files = row
    if len(mark) != 5 or not all(isinstance(number, int) for number in mark):
        raise UserError(f"{mark} is no fingerprint")
    names = (tuple(text.split("/")) if text else () for text in (folders, files))
    return tuple(mark), Listing(*names, links=False)


_current: ContextVar[Listings | None] = ContextVar("listings", default=None)


@contextlib.contextmanager
def kept_listings(dataset: str, root: str) -> Iterator[None]:
    """Within this, `list_folder` lists each folder once, and not at all if an entry in the cache still holds.

    Args:
        dataset: registry name.
        root: DATASET.ROOT.
    """
    listings = Listings(dataset, root, cache_dir())
    token = _current.set(listings)
    try:
        yield
    finally:
        _current.reset(token)
    listings.save()


def current() -> Listings | None:
    """The listings in use, if any are."""
    return _current.get()
