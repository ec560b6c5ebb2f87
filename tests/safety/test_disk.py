"""A disk that refuses, and writers that are killed: the old file stays whole, and a sentence says why.

Covered: a limit on the size of files (as a full disk: the writer stops in the middle) for every kind of file that
matters, in the plugin and in the toolbox; a full device; folders that cannot be written to; a writer that is killed at
many moments; a run that finds no space on the disk.
"""

import contextlib
import errno
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.utils import save_checkpoint as save_toolbox_checkpoint
from dassl.utils import write_json
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine.errors import is_user_error, sentence
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.results.files import write_atomically, write_bytes_atomically, write_text_atomically

BIG = torch.arange(100_000.0)
WRITERS = {
    "text": lambda path: write_text_atomically(path, "x" * 400_000),
    "bytes": lambda path: write_bytes_atomically(path, b"x" * 400_000),
    "array": lambda path: write_atomically(path, lambda file: np.save(file, BIG.numpy(), allow_pickle=False)),
    "arrays": lambda path: write_atomically(path, lambda file: np.savez_compressed(file, a=BIG.sin().numpy())),
    "checkpoint": lambda path: checkpoint.save_checkpoint({"state_dict": {"a": BIG}}, path, point=False),
    "toolbox checkpoint": lambda path: save_toolbox_checkpoint(
        {"state_dict": {"a": BIG}, "epoch": 1}, str(path.parent), model_name=path.name
    ),
    "toolbox json": lambda path: write_json(list(range(90_000)), str(path)),
}


@contextlib.contextmanager
def largest_file(size):
    """Within this context no file of this process grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_no_room_leaves_the_old_file(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and whole")
    with largest_file(50_000), pytest.raises(OSError) as caught:
        WRITERS[kind](path)
    assert caught.value.errno == errno.EFBIG and is_user_error(caught.value)
    assert sentence(caught.value) == f"{path}: File too large; free disk space, or name another folder"
    assert path.read_bytes() == b"old and whole" and list(tmp_path.iterdir()) == [path]
    WRITERS[kind](path)
    left = {item.name for item in tmp_path.iterdir()} - {"checkpoint"}  # the toolbox's pointer
    assert path.stat().st_size > 50_000 and left == {path.name}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_8_2_writers_leave_no_file_open(kind, tmp_path):
    """(row 8.2) Also where the disk is full: a file left open would be told of when it is collected."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        WRITERS[kind](tmp_path / "whole")
        with largest_file(50_000), contextlib.suppress(OSError):
            WRITERS[kind](tmp_path / "small")
        gc.collect()
    assert not [warning for warning in told if issubclass(warning.category, ResourceWarning)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a device without room")
def test_a_full_device_is_named():
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    caught.value.filename = "/data/run"
    assert sentence(caught.value) == "/data/run: No space left on device; free disk space, or name another folder"


@pytest.mark.parametrize("kind", list(WRITERS))
def test_folders_that_cannot_be_written_to(kind, tmp_path):
    (tmp_path / "file").write_text("a file in the place of a folder")
    with pytest.raises(OSError) as caught:
        WRITERS[kind](tmp_path / "file" / "inner")
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    if os.geteuid() == 0:
        place = Path("/proc/self/fdinfo/none")  # where nobody can write, not even root
    else:
        place = tmp_path / "locked" / "file"
        place.parent.mkdir(mode=0o500)
    with pytest.raises(OSError):
        WRITERS[kind](place)
    assert not place.exists()


KILLED = """
import sys
from pathlib import Path
from dassl_clip.results.files import write_text_atomically
print("ready", flush=True)
number = 0
while True:
    number += 1
    write_text_atomically(Path(sys.argv[1]), f"{number % 10}" * 300_000)
"""


def test_writers_that_are_killed_leave_whole_files(tmp_path):
    path = tmp_path / "file"
    for moment in range(4):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.01 + 0.025 * moment)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if path.exists():
            content = path.read_text()
            assert len(content) == 300_000 and len(set(content)) == 1
    assert path.exists()


def test_a_run_without_room(words, call, tmp_path):
    with largest_file(1500):  # less than its config.yaml has
        code, _, err = call(*words("CoOp", tmp_path / "run"))
    told = " ".join(err.split())
    assert code == 2 and "File too large; free disk space, or name another folder" in told and "Traceback" not in err
    assert not (tmp_path / "run/record.json").exists() and not list((tmp_path / "run").rglob("*.tmp"))
    assert call(*words("CoOp", tmp_path / "run"))[0] == 0  # with room the same command goes through
    assert (tmp_path / "run/record.json").exists()


@pytest.mark.parametrize("room", [3000, 5000, 8000, 12_000, 16_000])
def test_8_3_every_file_of_a_run_is_named(room, words, call, tmp_path):
    """(row 8.3) Whichever file is the first that does not fit: configuration, log, checkpoint, record, ..."""
    with largest_file(room):
        code, _, err = call(*words("CoOp", tmp_path / "run"))
    assert code in (0, 2) and "Traceback" not in err
    if code:
        assert re.fullmatch(
            rf"error: {re.escape(str(tmp_path))}/run/\S+: File too large; free disk space, .*\n", err
        ), err


def test_answers_without_room(call, tmp_path, domain_tree):
    out = tmp_path / "answers.csv"
    out.write_text("old\n")
    with largest_file(64):
        code, _, err = call("predict", domain_tree, "--names", "dog,house", "--backbone", "IconsCLIP", "--out", out)
    assert code == 2 and f"{out}: File too large" in " ".join(err.split()) and out.read_text() == "old\n"


@pytest.fixture
def goes_away(monkeypatch):
    """`goes_away(folder, moment)`: that folder is removed when training comes to that method."""

    def plan(folder, moment):
        known = getattr(CLIPTrainer, moment)

        def removing(trainer, *given):
            shutil.rmtree(folder)
            return known(trainer, *given)

        monkeypatch.setattr(CLIPTrainer, moment, removing)

    return plan


@pytest.mark.parametrize(("method", "moment"), [("CoOp", "before_epoch"), ("LinearProbe", "before_train")])
def test_8_1_images_that_go_away_in_mid_run_are_named(method, moment, goes_away, words, call, tmp_path, domain_tree):
    """(row 8.1)"""
    shutil.copytree(domain_tree, tmp_path / "data")
    goes_away(tmp_path / "data", moment)
    code, _, err = call(*words(method, tmp_path / "run", "--root", tmp_path / "data", "DATASET.NUM_SHOTS", "3"))
    told = " ".join(err.split())
    assert code == 2 and "Traceback" not in err and re.search(r"error: .*data/.*\.png.*No such file", told), told


@pytest.mark.parametrize("gone", ["run/tensorboard", "run"])
def test_8_1_a_run_outlives_its_output_folder(gone, goes_away, words, call, tmp_path):
    """(row 8.1) Tensorboard's file is left out from then on, with a warning; the record is written."""
    goes_away(tmp_path / gone, "before_epoch")
    code, out, err = call(*words("CoOp", tmp_path / "run"))
    assert code == 0 and "Traceback" not in out + err
    assert "tensorboard's file below" in out and (tmp_path / "run/record.json").exists()
