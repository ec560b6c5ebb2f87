"""Coverage-guided fuzzing with atheris, where it is installed: only documented errors come out of the readers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SEEDS = (
    b"path,class,domain\na.jpg,dog,x\n",
    json.dumps({part: [["banded/a.jpg", 0, "banded"]] for part in ("train", "val", "test")}).encode(),
    json.dumps({"version": 1, "dataset": "Icons", "shots": 1, "train": [], "val": []}).encode(),
    b"TRAINER: {NAME: a}\nDATASET: {NAME: b}\nMODEL: &x {BACKBONE: {NAME: c}}\nY: *x\n",
    b"PK\x05\x06" + bytes(18),
    b'{"schema_version": 1, "method": "a"}',
)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install atheris")
def test_guided_fuzzing(tmp_path):
    for number, seed in enumerate(SEEDS):
        (tmp_path / f"seed{number}").write_bytes(bytes([number]) + seed)
    words = [sys.executable, str(Path(__file__).with_name("guided.py")), "4000", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done 4000 runs" in done.stderr
