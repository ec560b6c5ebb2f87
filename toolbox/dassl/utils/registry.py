"""A table from names to classes or functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tools import get_most_similar_str_to_a_from_b


class Registry:
    """Objects by their `__name__`.

    Used as a decorator, `@REGISTRY.register()`, or called, `REGISTRY.register(obj)`.

    Args:
        name: What the table holds, for its messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def _do_register(self, name: str, obj: Any, force: bool = False) -> None:
        if name in self._obj_map and not force:
            raise KeyError(
                f'An object named "{name}" was already registered in "{self._name}" registry '
                f"(by {getattr(self._obj_map[name], '__module__', 'unknown')}); register(force=True) replaces it"
            )
        self._obj_map[name] = obj

    def register(self, obj: Any = None, force: bool = False) -> Callable | None:
        """Adds an object.

        Args:
            obj: The object; left out when used as a decorator.
            force: An earlier object of the same name is replaced.

        Raises:
            KeyError: The name is taken and `force` is not set.
        """
        if obj is not None:
            return self._do_register(obj.__name__, obj, force)

        def decorate(fn_or_class: Any) -> Any:
            self._do_register(fn_or_class.__name__, fn_or_class, force)
            return fn_or_class

        return decorate

    def get(self, name: str) -> Any:
        """The object of that name.

        Raises:
            KeyError: There is none; the message names the closest.
        """
        if name not in self._obj_map:
            closest = get_most_similar_str_to_a_from_b(name, self._obj_map)
            guess = f" (do you mean [{closest}]?)" if closest else ""
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry{guess}')
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """The names, in the order of registration."""
        return list(self._obj_map)
