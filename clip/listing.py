"""Lists inside a sentence: the first few entries and a count, whatever a file or folder holds."""

from collections.abc import Iterable

SHOWN = 8


def listed(entries: Iterable[object], shown: int = SHOWN, separator: str = ", ") -> str:
    """The first entries, and how many more there are; "" for none."""
    names = [str(entry) for entry in entries]
    more = [f"... ({len(names) - shown} more)"] if len(names) > shown else []
    return separator.join([*names[:shown], *more])
