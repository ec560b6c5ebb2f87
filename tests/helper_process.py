"""A process that has everything imported, and forks a fresh child for each command or program of a test.

Importing torch takes seconds. The child does what `python -m dassl_clip.cli` does. The runs that a command starts are
forked from it; those of commands in processes of their own come from the server of forks, as everywhere.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HELPER = """
import json, multiprocessing, os, runpy, sys
import dassl_clip.datasets, dassl_clip.trainers
from dassl_clip.experiments import preload  # what the server of forks imports
from dassl_clip.cli.__main__ import main
from dassl_clip.clip.sources import clip_tokenizer
clip_tokenizer(77)  # read once for all children
os.fsync = lambda file: None
context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: context("fork" if method == "forkserver" else method)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        pid, status = os.waitpid(*job["wait"])
        print(os.waitstatus_to_exitcode(status) if pid else "", flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(job["cwd"])
        os.environ.update(job.get("environment", {}))
        for number, path in enumerate(("/dev/null", job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        code, sys.argv = 1, job["words"]
        try:
            if job["words"][0].endswith(".py"):
                runpy.run_path(job["words"][0], run_name="__main__")
                code = 0
            else:
                code = main(job["words"])
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
"""


SETTINGS_OF_SCRIPTS = ("TASK", "DATA", "OUT", "CFG", "SHOTS", "JOBS", "REFERENCE", "PYTHON")
OUTSIDE = {key: value for key, value in os.environ.items() if key not in SETTINGS_OF_SCRIPTS}
ENVIRONMENT = {**OUTSIDE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


class Child:
    """A child of the helper that runs a command in a session of its own; `with` ends it, and what it started."""

    def __init__(self, helper: "Helper", job: dict) -> None:
        self.out, self.err = Path(job["out"]), Path(job["err"])
        self.out.write_text("")
        self.err.write_text("")
        self.helper, self.pid, self.returncode = helper, int(helper.ask(job)), None

    def poll(self, how: int = os.WNOHANG) -> int | None:
        """The exit code, or None as long as it runs."""
        if self.returncode is None and (code := self.helper.ask({"wait": (self.pid, how)})):
            self.returncode = int(code)
        return self.returncode

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """Wait for its end; gives what it printed."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.out.read_text(), self.err.read_text()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.poll(0)


class Helper:
    """The process that has everything imported; it starts when it is first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def ask(self, job: dict) -> str:
        """What the process answers."""
        if self.process is None:
            command = [sys.executable, "-c", HELPER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            cache = {"DASSL_CLIP_CACHE": os.environ["DASSL_CLIP_CACHE"]}
            self.process = subprocess.Popen(command, env=ENVIRONMENT | cache, **pipes)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, words: list, folder: Path, name: str = "std", **environment: str) -> Child:
        """Start `dassl-clip WORDS`, or a program `FILE.py`, in a fresh child that prints to files of a folder."""
        job = {"words": list(map(str, words)), "cwd": str(folder), "environment": environment}
        return Child(self, job | {"out": str(folder / f"{name}out"), "err": str(folder / f"{name}err")})

    def run(self, job: dict) -> int:
        """Run one command in a fresh child; returns its exit code."""
        return Child(self, job).poll(0)

    def close(self) -> None:
        """End the process, also where workers that a failed test left hold its input open."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
