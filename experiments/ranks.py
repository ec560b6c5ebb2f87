"""The consoles of a run's processes: the main one speaks, the others write files, and an error is told once."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from dassl_clip.engine import distributed
from dassl_clip.engine.console import Console
from dassl_clip.engine.errors import is_user_error, report
from dassl_clip.results.errors import UserError


@contextlib.contextmanager
def own_log(folder: Path) -> Iterator[None]:
    """In a process that is not the main one: what it prints, and python's warnings, go to `log-rankN.txt`."""
    console, shown = sys.stdout, warnings.showwarning
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"log-rank{distributed.rank()}.txt", "a", buffering=1, encoding="utf-8") as file:
        sys.stdout = Console(file, file.name)
        warnings.showwarning = lambda message, category, name, line, *rest: print(f"{category.__name__}: {message}")
        try:
            yield
        except Exception as error:
            traceback.print_exception(error, file=sys.stdout)
            raise
        finally:
            sys.stdout, warnings.showwarning = console, shown


def tell(text: str) -> None:
    """One line on stderr, from the main process."""
    if distributed.is_main():
        print(text, file=sys.stderr)


def report_once(error: Exception, debug: bool) -> int:
    """`report`, by the first of the processes that has an error; the exit code is the same in all."""
    lost = distributed.lost_contact(error)
    if lost:
        error = UserError(lost)
    if distributed.first_to("report an error"):
        return report(error, debug)
    return 2 if is_user_error(error) else 1
