"""Errors that users cause, each with one line that says what was given, what was expected, and what to do.

The command line prints that line and exits with code 2 (`engine/errors.py`); any other exception is a bug and keeps its
traceback. The classes are also those of Python that a caller of the library would look for.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for, or in a file that was given."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class NotFiniteError(UserError, FloatingPointError):
    """NaN or an infinite number where every number has to be finite."""


def closest(given: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> list[str]:
    """The known names that are closest to what was given, ignoring case."""
    lowered = {name.lower(): name for name in known}
    return [lowered[name] for name in difflib.get_close_matches(given.lower(), lowered, n=most, cutoff=cutoff)]


def suggest(names: Iterable[str]) -> str:
    """`" Did you mean 'X' or 'Y'?"`, or an empty text without names."""
    quoted = " or ".join(f"'{name}'" for name in names)
    return f" Did you mean {quoted}?" if quoted else ""


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> str:
    """`" Did you mean 'X'?"` for the closest known names, ignoring case, or an empty text."""
    return suggest(closest(given, known, cutoff, most))


def listed(entries: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """The first entries and how many more there are, as in "a, b and 12 more"; "" for none."""
    names = [str(entry) for entry in entries]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
