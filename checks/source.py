"""Which files a method is made of, and the hash of them all: a stored result holds for these files alone."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

SHARED = ("dassl", "dassl_clip.engine", "dassl_clip.clip", "torch", "builtins", "abc")  # what runs any method


def source_files(kind: type) -> list[Path]:
    """The files of a trainer's class and of the classes that it is made of, with the modules beside them that they import.

    What all methods share (`SHARED`) is left out.
    """
    waiting = []
    for one in kind.__mro__:
        if not any(one.__module__ == name or one.__module__.startswith(f"{name}.") for name in SHARED):
            file = inspect.getsourcefile(one)
            waiting += [Path(file)] if file else []
    files: list[Path] = []
    for file in waiting:  # grows while it is gone through
        if file not in files:
            files.append(file)
            waiting += [other for other in _imported_beside(file) if other not in waiting]
    return files


def source_hash(kind: type) -> str:
    """SHA-256 (hex) over the names and contents of a method's files."""
    digest = hashlib.sha256(kind.__qualname__.encode())
    for file in sorted(source_files(kind), key=lambda path: path.name):
        digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


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
