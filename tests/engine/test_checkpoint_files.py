"""Checkpoint files: round trips, torn files, refused pickles, old files with scheduler objects, CoOp's buffers."""

import os
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from dassl_clip.engine import checkpoint_files as checkpoint


class Old:
    """Stands for a class of an old toolbox that a checkpoint drags along."""


def make_old_state(tmp_path, monkeypatch):
    """A file as CoOp's programs left them: the warm-up's state holds the inner scheduler, and its optimizer."""
    parameter = nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    sgd.step()
    inner = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5)
    inner.__dict__ = {k: v for k, v in inner.__dict__.items() if not callable(v)}
    sgd.__dict__ = {k: v for k, v in sgd.__dict__.items() if not k.startswith("_zero")}
    state = {
        "state_dict": OrderedDict(
            ctx=torch.ones(4, 3), token_prefix=torch.zeros(7, 1, 3), token_suffix=torch.zeros(7, 10, 3)
        ),
        "epoch": 50,
        "optimizer": sgd.state_dict(),
        "scheduler": {"successor": inner, "last_epoch": 50},
        "val_result": np.float64(81.5),
    }
    path = tmp_path / "prompt_learner" / "model.pth.tar-50"
    path.parent.mkdir()
    torch.save(state, path)
    return path


class Prompt(nn.Module):
    def __init__(self):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(4, 3))


def test_round_trip_and_pointer(tmp_path):
    path = tmp_path / "model" / checkpoint.epoch_name(3)
    checkpoint.save_checkpoint({"state_dict": {"a": torch.arange(3.0)}, "epoch": 3}, path, point=True)
    assert torch.equal(checkpoint.load_checkpoint(path)["state_dict"]["a"], torch.arange(3.0))
    assert (path.parent / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint", "model.pth.tar-3"]


def test_1_5_no_bit_of_a_checkpoint_can_change_unseen(tmp_path):
    """(row 1.5) Nor of what `sha256` does not cover: the optimiser, the steps of a fit, the random states."""
    path, draw = tmp_path / "model" / checkpoint.step_name(3, 2), random.Random(3)
    content = {"state_dict": {"a": torch.randn(40)}, "epoch": 3, "fit": {"moment": torch.randn(300)}}
    checkpoint.save_checkpoint(content, path, point=False)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        data = bytearray(whole)
        position = draw.randrange(len(data))
        data[position] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = checkpoint.load_checkpoint(path)
        except ValueError:
            refused += 1
            continue
        assert torch.equal(found["state_dict"]["a"], content["state_dict"]["a"]) and found["epoch"] == 3
        assert torch.equal(found["fit"]["moment"], content["fit"]["moment"]), position
    assert refused > 50


def test_plain_state_dicts_load_too(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pth")
    assert torch.equal(checkpoint.load_checkpoint(tmp_path / "plain.pth")["state_dict"]["a"], torch.ones(2))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, lambda f: f.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_old_files_with_optimiser_objects_load_without_running_them(tmp_path, monkeypatch):
    path = make_old_state(tmp_path, monkeypatch)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    state = checkpoint.load_checkpoint(path)
    prompt = Prompt()
    checkpoint.load_state(prompt, state["state_dict"], "old file")
    assert torch.equal(prompt.ctx, torch.ones(4, 3))


def test_other_pickled_objects_are_refused(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    for name, thing in (("evil", Evil()), ("stranger", Old())):
        path = tmp_path / name
        torch.save({"state_dict": {}, "scheduler": thing}, path)
        with pytest.raises(ValueError, match="refused: it holds pickled objects"):
            checkpoint.load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty"])
def test_torn_files_are_named(tmp_path, damage):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"a": torch.ones(1000)}}, path)
    content = path.read_bytes()
    path.write_bytes({"truncate": content[:-700], "garbage": b"\x01" * 500, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"model\.pth\.tar-1"):
        checkpoint.load_checkpoint(path)


def test_missing_file_lists_what_is_there(tmp_path):
    (tmp_path / "model.pth.tar-5").touch()
    with pytest.raises(FileNotFoundError, match=r"beside it: model\.pth\.tar-5"):
        checkpoint.load_checkpoint(tmp_path / "model.pth.tar-7")


def test_mismatches_are_listed_by_name():
    with pytest.raises(ValueError, match=r"missing ctx; unexpected cxt"):
        checkpoint.load_state(Prompt(), {"cxt": torch.zeros(4, 3)}, "file")
    with pytest.raises(ValueError, match=r"ctx is \[4, 5\], expected \[4, 3\]"):
        checkpoint.load_state(Prompt(), {"module.ctx": torch.zeros(4, 5)}, "file")


def test_newest_first_and_the_pointer_before_all(tmp_path):
    for epoch in (2, 10, 9):
        checkpoint.save_checkpoint({"state_dict": {}}, tmp_path / checkpoint.epoch_name(epoch), point=epoch == 9)
    (tmp_path / checkpoint.BEST_NAME).touch()
    names = [p.name for p in checkpoint.newest_checkpoint(tmp_path)]
    assert names == ["model.pth.tar-9", "model.pth.tar-10", "model.pth.tar-2"]
    (tmp_path / "checkpoint").write_text("model.pth.tar-77\n")  # points to nothing
    assert next(checkpoint.newest_checkpoint(tmp_path)).name == "model.pth.tar-10"
