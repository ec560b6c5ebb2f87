"""Which files a method is made of, and the hash of them all: a stored result holds for these files alone."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dassl_clip.results import budgets

from .config import is_a

SHARED = ("dassl", "dassl_clip.engine", "dassl_clip.clip", "torch", "builtins", "abc")  # what runs any method
_WORDS = ("PREC", "TASKS", "FROM", "CTX_INIT")  # settings in words that do not decide what is read


def source_files(kind: type) -> list[Path]:
    """The files of a trainer's class and of its bases, with the modules beside them that they import.

    What all methods share (`SHARED`) is left out.
    """
    waiting = []
    for one in kind.__mro__:
        if not any(one.__module__ == name or one.__module__.startswith(f"{name}.") for name in SHARED):
            found = inspect.getsourcefile(one)
            waiting += [Path(found)] if found else []
    files: list[Path] = []
    for file in waiting:  # grows while it is gone through
        if file not in files:
            files.append(file)
            waiting += [other for other in _imported_beside(file) if other not in waiting]
    return files


@functools.cache
def source_hash(kind: type) -> str:
    """SHA-256 (hex) over the names and contents of a method's files."""
    digest = hashlib.sha256(kind.__qualname__.encode())
    for file in sorted(source_files(kind), key=lambda path: path.name):
        digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def decisive_settings(kind: type, config: Any) -> dict[str, Any]:
    """The settings that may decide what a method reads: its own that are words or switches, and FINAL_MODEL.

    Numbers, prompts, precision and what the class names in `undecisive` do not.
    """
    idle = {*_WORDS, *getattr(kind, "undecisive", ())}
    node = f"TRAINER.{config.TRAINER.NAME.upper()}"
    own = config.TRAINER.get(config.TRAINER.NAME.upper(), {})
    words = {key: value for key, value in own.items() if isinstance(value, (str, bool)) and key not in idle}
    chosen = {key: value for key, value in words.items() if not is_a(f"{node}.{key}", "comparable")}
    return {key: value for key, value in chosen.items() if not _is_number(value)} | {
        "FINAL_MODEL": config.TEST.FINAL_MODEL
    }


def known_budget(kind: type, config: Any) -> list[str]:
    """What a run of a method with this configuration reads, as a check has found; empty where none has."""
    try:
        return budgets.stored(config.TRAINER.NAME, source_hash(kind), decisive_settings(kind, config))
    except (OSError, TypeError, SyntaxError):  # a class without a file
        return []


def _is_number(value: Any) -> bool:
    try:
        float(value.removeprefix("auto:") if isinstance(value, str) else value)
    except ValueError:
        return False
    return not isinstance(value, bool)


def _imported_beside(file: Path) -> Iterator[Path]:
    """The modules in a file's folder that it imports, by whichever form."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level <= 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            other = file.parent / f"{name.partition('.')[0]}.py"
            if other.is_file():
                yield other
