"""Facts about the machine and the programs of a run: versions, toolbox, git revision, memory, command line."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .escaping import printable

DISTRIBUTION = "dassl-clip"
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "yacs", DISTRIBUTION)
_ROOT = Path(__file__).resolve().parents[1]


def environment_facts() -> dict[str, Any]:
    """The keys of a record that do not depend on the trainer."""
    torch = sys.modules.get("torch")
    return {
        "versions": package_versions(),
        "toolbox": toolbox_facts(),
        "git_revision": git_revision(),
        "peak_memory_mb": peak_memory_mb(),
        "threads": torch.get_num_threads() if torch is not None else 0,  # on a CPU they decide the last digits
        "command": command_line(),
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@functools.lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers; "" for one that is not installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    torch = sys.modules.get("torch")
    if torch is not None:
        versions["torch"] = str(torch.__version__)
    return versions


def toolbox_facts() -> dict[str, str]:
    """Which distribution serves the name `dassl`: kind ("embedded", "upstream" or "none"), version and folder."""
    spec = importlib.util.find_spec("dassl")
    if spec is None or not spec.submodule_search_locations:
        return {"kind": "none", "version": "", "path": ""}
    path = Path(next(iter(spec.submodule_search_locations))).resolve()
    text = (path / "__init__.py").read_text(encoding="utf-8") if (path / "__init__.py").is_file() else ""
    written = re.search(r"^__version__\s*=\s*[\"']?([^\"'\s]*)", text, re.MULTILINE)
    version = str(getattr(sys.modules.get("dassl"), "__version__", "")) or (written[1] if written else "")
    # The toolbox that this project carries, wherever it was installed to.
    embedded = path == _ROOT / "toolbox" / "dassl" or "\n__embedded__ = True" in text
    return {"kind": "embedded" if embedded else "upstream", "version": version, "path": str(path)}


@functools.lru_cache(maxsize=1)
def git_revision() -> str:
    """The commit of the checkout this program runs from, with "+changes" if tracked files differ from it.

    An installed wheel answers with the commit it was built from where pip noted one, otherwise with "".
    """
    if (_ROOT / ".git").exists():
        head = _git("rev-parse", "HEAD")
        if not head:
            return ""
        return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    try:
        noted = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def peak_memory_mb() -> float:
    """Largest memory in use so far, in MiB: on the GPU if this process used one, otherwise of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_allocated()) / 2**20, 1)
    try:
        import resource
    except ImportError:  # on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def command_line() -> str:
    """The command that started this process, quoted so that it can be pasted into a shell; bytes that are no text as
    escapes."""
    program, *arguments = map(printable, sys.argv)
    name = os.path.basename(program)
    if name == "__main__.py":
        return shlex.join(["python", "-m", "dassl_clip.cli", *arguments])
    return shlex.join([*(["python", program] if name.endswith(".py") else [name]), *arguments])


def usable_cores() -> int:
    """Processor cores that this process may use: its affinity, and the container's quota if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores
