"""Names of a module that are imported when they are first asked for: what they need is heavy, optional or seldom used.

Modules of the original hold all that they import, and programs take it from there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def import_on_demand(module: str, **places: str) -> Callable[[str], Any]:
    """A `__getattr__` for a module.

    Args:
        module: Name of the module.
        places: For each of its names, "package.module" or "package.module:attribute"; leading dots are relative to the
            module's package.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, attribute = places[name].partition(":")
        found = importlib.import_module(place, sys.modules[module].__package__)
        return getattr(found, attribute) if attribute else found

    return find
