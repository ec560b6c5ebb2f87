"""CLIP adaptation under domain shift: classifiers for Python programs, in the manner of scikit-learn.

`from dassl_clip import InMaPClassifier` imports what it needs; `import dassl_clip` alone imports nothing.
"""

import importlib
from typing import Any

_MODULES = {
    "classifiers": (
        "CLAPClassifier",
        "Classifier",
        "CoOpClassifier",
        "GOProClassifier",
        "InMaPClassifier",
        "LinearProbeClassifier",
        "ZeroshotClassifier",
        "load",
    ),
    "errors": ("NotFittedError",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dassl_clip' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dassl_clip.api.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
