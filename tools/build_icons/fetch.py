"""Download the pinned packs with the npm client and read their SVG bodies."""

import json
import logging
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .packs import Pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Icon:
    """One drawing of a pack: its SVG body and view box (left, top, width, height)."""

    pack: str
    name: str
    body: str
    box: tuple[float, float, float, float]
    palette: bool


def archive_path(pack: Pack, cache: Path) -> Path:
    """Where the npm client puts a pack's archive."""
    stem = pack.npm.lstrip("@").replace("/", "-")
    return cache / "npm" / f"{stem}-{pack.version}.tgz"


def fetch(pack: Pack, cache: Path) -> Path:
    """The pack's archive, downloaded once.

    Raises:
        FileNotFoundError: if the npm client is missing or cannot get the archive.
    """
    path = archive_path(pack, cache)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = f"{pack.npm}@{pack.version}"
    logger.info("fetching %s", spec)
    # In a folder of its own: another process that builds must not meet half an archive.
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        fetched = Path(place, path.name)
        try:
            done = subprocess.run(["npm", "pack", "--silent", spec], cwd=place, capture_output=True, text=True)
        except OSError as error:
            raise FileNotFoundError(
                f"The npm client is needed to fetch {spec} and cannot be started. Install Node.js, or put the archive "
                f"at {path} yourself."
            ) from error
        if done.returncode or not fetched.is_file():
            raise FileNotFoundError(
                f"`npm pack {spec}` did not give {path.name}: {done.stderr.strip()[-300:] or 'no message'}. Check the "
                f"network, or put the archive at {path} yourself."
            )
        fetched.replace(path)
    return path


def read_icons(pack: Pack, cache: Path) -> Iterator[Icon]:
    """The icons of a fetched pack in the order of their names; hidden ones and aliases are left out."""
    with tarfile.open(fetch(pack, cache)) as archive:
        table = json.load(archive.extractfile("package/icons.json"))
        info = json.load(archive.extractfile("package/info.json"))
    palette = bool(info.get("palette"))
    for name in sorted(table["icons"]):
        entry = table["icons"][name]
        if entry.get("hidden"):
            continue
        left, top, width, height = (
            float(entry.get(key, table.get(key, default)))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        yield Icon(pack.pack, name, entry["body"], (left, top, width, height), palette)
