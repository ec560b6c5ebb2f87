"""One reading of a frozen model's weights for many trainers of a process, where that is asked for."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

_LOADED: list[dict[Any, Any]] = []  # of the contexts that are open, what they loaded


@contextlib.contextmanager
def shared_backbones() -> Iterator[None]:
    """Within this context a model is loaded once; every caller gets a copy of its own, which it may change."""
    _LOADED.append({})
    try:
        yield
    finally:
        _LOADED.pop()


def shareable(load: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that loads a model take part in `shared_backbones`."""

    @functools.wraps(load)
    def loaded(*args: Any, **named: Any) -> Any:
        if not _LOADED:
            return load(*args, **named)
        key = (*map(str, args), *sorted((name, str(value)) for name, value in named.items()))
        if key not in _LOADED[-1]:
            _LOADED[-1][key] = load(*args, **named)
        return deepcopy(_LOADED[-1][key])

    return loaded
