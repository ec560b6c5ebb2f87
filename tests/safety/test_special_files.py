"""Only regular files are read: a pipe, a device, a socket or a folder is named for what it is, and nothing hangs.

Covers row 5.4 wherever the path of a user is opened: images in a folder, in a loader and in the toolbox; records, yaml
and JSON files, logs and metrics of run folders; manifests, split files, selections, class lists; checkpoints, exports,
weights; lists of names; DATASET.ROOT.
"""

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.utils import load_checkpoint as toolbox_checkpoint
from dassl.utils import read_image as toolbox_image
from dassl.utils.atomic import atomic_write
from dassl_clip.cli import predict_scores, report
from dassl_clip.clip import weights
from dassl_clip.datasets import add_config, fewshot, folders, manifest, splits
from dassl_clip.engine import catalogue, images, registry
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine import export as released
from dassl_clip.engine import metrics_log as loggers
from dassl_clip.results import documents, files, own_images, records


@pytest.fixture(autouse=True)
def soon():
    """End a test that hangs after ten seconds."""

    def stop(*_):
        raise TimeoutError("a special file was opened, and never gave anything")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def manifest_of(path):
    cfg = get_cfg_default()
    add_config(cfg)
    cfg.DATASET.MANIFEST, cfg.DATASET.ROOT = str(path), ""
    return manifest.manifest_file(cfg)


def split_of(path):
    cfg = get_cfg_default()
    add_config(cfg)
    cfg.DATASET.SPLIT_FILE = str(path)
    return splits.SplitFileDataset.read_split(None, cfg, path.parent, [], {"split_file": "split.json"})


READERS = {
    "image": images.read_image,
    "toolbox's image": lambda path: toolbox_image(str(path)),
    "checkpoint": checkpoint.load_checkpoint,
    "toolbox's checkpoint": lambda path: toolbox_checkpoint(str(path)),
    "yaml": documents.read_yaml,
    "class list": folders.read_text,
    "manifest": manifest_of,
    "split file": split_of,
    "selection": lambda path: fewshot.read_selection(str(path), "PACS", 1, [], []),
    "weights": weights.read_weights,
    "export": released.load_export,
    "config": lambda path: catalogue.existing_file(str(path)),
    "import": lambda path: registry.import_user_code(f"{path}.py"),
    "names": lambda path: own_images.given_names(str(path)),
    "picture": lambda path: own_images.find_images([str(path)]),
    "root": lambda path: folders.open_root(str(path), "PACS"),
}


@pytest.mark.parametrize("name", READERS)
def test_5_4_a_pipe_is_named_and_never_read(name, tmp_path):
    path = tmp_path / "x"
    pipe(tmp_path / "x.py" if name == "import" else path)
    with pytest.raises((OSError, ValueError), match=r"a named pipe|not a regular file"):
        READERS[name](path)


@pytest.mark.parametrize("name", sorted({*READERS} - {"import", "picture", "root"}))
def test_5_4_devices_and_folders_are_named(name, tmp_path):
    for path, kind in (("/dev/urandom", "a device"), (tmp_path, "a folder")):
        with pytest.raises((OSError, ValueError), match=rf"{kind}|not a regular file"):
            READERS[name](Path(path))


def test_5_4_kinds(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("none")
    pipe(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        kinds = {item.name: files.kind_of(item) for item in tmp_path.iterdir()}
    assert kinds == {
        "file": "a file", "link": "a file", "dangling": "a link to a file that does not exist", "pipe": "a named pipe",
        "socket": "a socket",
    }  # fmt: skip
    others = [files.kind_of(path) for path in ("/dev/null", tmp_path, tmp_path / "no")]
    assert others == ["a device", "a folder", "nothing"]


@pytest.mark.parametrize("write", ["results", "toolbox"])
def test_5_4_a_pipe_or_device_that_is_written_to_stays_one(write, tmp_path):
    """`--out /dev/stdout`: the temporary file takes the place of regular files alone."""
    path, heard = pipe(tmp_path / "out"), []
    reader = threading.Thread(target=lambda: heard.append(path.read_bytes()))
    reader.start()
    if write == "results":
        files.write_text_atomically(path, "a table")
    else:
        with atomic_write(path, "w") as file:
            file.write("a table")
    reader.join()
    assert heard == [b"a table"] and files.kind_of(path) == "a named pipe"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_5_4_pictures_of_a_folder_beside_a_pipe(tmp_path):
    """What `predict` reads: the pipe is left out with a reason, the picture is scored."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pipe(tmp_path / "x.jpg")
    paths = own_images.find_images([str(tmp_path)])
    good, images, bad = predict_scores.load_batch(lambda image: torch.tensor(image.size), paths)
    assert (good, images.tolist()) == ([tmp_path / "a.png"], [[8, 8]])
    assert bad == [(tmp_path / "x.jpg", "it is a named pipe, not a file")]


def test_5_4_run_folders_with_pipes(tmp_path):
    """What `table` and `report` read of a run."""
    for name in (records.RECORD_NAME, "log.txt", "metrics.csv"):
        pipe(tmp_path / name)
    found = records.inspect_record(tmp_path)
    assert found.state == "broken" and "record.json is a named pipe, not a file" in found.reason
    assert report.gap(tmp_path, tmp_path, "").tail == []
    assert loggers._read_rows(tmp_path / "metrics.csv") == []


def test_5_4_an_image_of_a_loader_is_a_pipe(tmp_path):
    pipe(tmp_path / "x.jpg")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/x.jpg is a named pipe, not a file; remove it"):
        folders.list_folder(str(tmp_path))
