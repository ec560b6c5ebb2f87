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


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`" Did you mean 'X'?"` for the closest known name, ignoring case, or an empty text."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=cutoff)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ""
