"""Python objects that programs leave in their checkpoints, read as numbers without making any of them.

The original toolbox saves a whole schedule, and through it an optimizer, in each checkpoint with a warm-up; other
programs add scalars of numpy, a `Namespace` or a configuration. While `torch.load` reads with `weights_only=True`, the
names of these classes stand for the inert classes below, which keep what the file says of an object, or nothing.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

SCALAR = re.compile(r"[biufc]\d{1,2}")  # numpy's codes of numbers


class Inert:
    """Stands for an object that nobody needs: takes anything, keeps nothing."""

    def __new__(cls, *args: object) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class Record(Inert):
    """Stands for an object whose attributes are of use."""

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class DType(Inert):
    """Stands for a type of numpy."""

    def __new__(cls, code: str = "", *args: object) -> DType:
        own = super().__new__(cls)
        own.code, own.order = code, "="
        return own

    def __setstate__(self, state: object) -> None:
        self.order = state[1] if isinstance(state, tuple) and state[1:] and state[1] in ("<", ">", "|") else "="


class Scalar(Inert):
    """Stands for a scalar of numpy: the plain number if it is one."""

    def __new__(cls, dtype: object = None, data: object = b"") -> Any:
        if isinstance(dtype, DType) and isinstance(data, bytes) and SCALAR.fullmatch(str(dtype.code)):
            return np.frombuffer(data, dtype.order + dtype.code, count=1).item()
        return super().__new__(cls)


class Encoded(Inert):
    """Stands for the function that makes bytes of text; later versions of torch know it themselves."""

    def __new__(cls, text: object = "", *args: object) -> bytes:
        return str(text).encode("latin-1")


class Mapping(Inert):
    """Stands for a kind of dictionary."""

    def __new__(cls, *args: object) -> OrderedDict:
        return OrderedDict()  # the kind that torch fills


@cache
def _stand_ins() -> list[Callable]:
    """The stand-ins, each under the module and the name of a class that files speak of."""
    schedules = [
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in vars(torch.optim.lr_scheduler).values()
        if isinstance(cls, type) and issubclass(cls, torch.optim.lr_scheduler.LRScheduler)
    ]
    optimizers = [
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in vars(torch.optim).values()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    ]
    builtins = [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "getattr")]
    arrays = [f"numpy.{room}.multiarray" for room in ("core", "_core")]
    own = "dassl.optim.lr_scheduler"
    names = {
        Record: [*schedules, f"{own}.ConstantWarmupScheduler", f"{own}.LinearWarmupScheduler", "argparse.Namespace"],
        Mapping: ["collections.defaultdict", "yacs.config.CfgNode"],
        Scalar: [f"{place}.scalar" for place in arrays],
        DType: ["numpy.dtype"],
        Encoded: ["_codecs.encode"],
        Inert: [
            *optimizers, *(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW")), *builtins,
            "numpy.ndarray", *(f"{place}._reconstruct" for place in arrays),
        ],
    }  # fmt: skip
    found = []
    for kind, paths in names.items():
        for path in dict.fromkeys(paths):
            module, _, name = path.rpartition(".")
            found.append(type(name, (kind,), {"__module__": module, "__qualname__": name}))
    return [Counter, *found]


@contextmanager
def leftovers_admitted() -> Iterator[None]:
    """Within this context `torch.load(weights_only=True)` reads the known leftovers as stand-ins."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_stand_ins())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def drop_leftovers(value: Any) -> Any:
    """Replaces, in place, the stand-ins of schedules and the like by their attributes, and all others by None.

    The optimizer of a schedule is left out.
    """
    if isinstance(value, Record):
        state = getattr(value, "state", {})
        return {key: drop_leftovers(item) for key, item in state.items() if key != "optimizer"}
    if isinstance(value, Inert):
        return None
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = drop_leftovers(item)
    elif isinstance(value, list):
        value[:] = map(drop_leftovers, value)
    elif type(value) is tuple:
        return tuple(map(drop_leftovers, value))
    return value
