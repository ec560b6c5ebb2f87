"""What `import NAME` finds: never a folder of this checkout under its bare name (`datasets`, `trainers`, ...).

`python train.py` puts the checkout's root on `sys.path`, and `python -m` the working folder. Hugging Face's `datasets`,
or the `trainers` package of another project, would then be hidden by ours.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEATURE_FOLDER = "features"  # of cached features, in the folder of the cache
_PROGRAMS = ("train", "setup")


def leave_checkout() -> None:
    """Take the checkout's root off `sys.path`, however it got there."""
    sys.path[:] = [entry for entry in sys.path if not _is_root(entry)]


def _is_root(entry: str) -> bool:
    try:
        return Path(entry).resolve() == ROOT  # "" is the working folder
    except (OSError, RuntimeError, ValueError):  # not a path
        return False


def add_folder(folder: Path) -> Callable[[], None]:
    """Let the modules of a folder come first, of the checkout's root only those of the user; returns what undoes it."""
    if folder.resolve() != ROOT:
        sys.path.insert(0, str(folder))
        return lambda: sys.path.remove(str(folder))
    finder = _UserModules()
    sys.meta_path.insert(0, finder)
    return lambda: sys.meta_path.remove(finder)


class _UserModules:
    """Finds what users put beside `train.py`, and none of this project's own packages and programs."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module of that name in the checkout's root, or None."""
        spec = PathFinder.find_spec(name, [str(ROOT)]) if path is None and name not in _PROGRAMS else None
        if spec is None or spec.origin is None:  # a folder without `__init__.py`
            return None
        ours = importlib.util.find_spec(f"dassl_clip.{name}")
        return None if ours is not None and ours.origin == spec.origin else spec
