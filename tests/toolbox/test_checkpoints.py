"""Checkpoints: files and pointer, atomic writing, safe loading, partial and strict loading, what to resume from."""

import os
import pickle
import re
import zipfile
from argparse import Namespace
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.utils import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.checkpoints import find_checkpoint, find_common_checkpoints


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "model")


def state_of(model: nn.Module, epoch: int, **more) -> dict:
    return {"state_dict": model.state_dict(), "epoch": epoch, "optimizer": None, "scheduler": None, **more}


def pointer(folder: str) -> str:
    return Path(folder, "checkpoint").read_text()


def test_file_pointer_and_lines(folder, capsys):
    model = nn.DataParallel(nn.Linear(2, 1))
    state = state_of(model, 7, val_result=np.float64(81.5))
    save_checkpoint(state, folder)
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-7"]
    path = os.path.join(folder, "model.pth.tar-7")
    assert pointer(folder) == "model.pth.tar-7\n"
    assert capsys.readouterr().out == f"Checkpoint saved to {path}\n"
    loaded = torch.load(path, weights_only=True)
    assert list(loaded["state_dict"]) == ["weight", "bias"]
    assert type(loaded["val_result"]) is float and loaded["val_result"] == 81.5
    assert list(state["state_dict"]) == ["module.weight", "module.bias"]


def test_best_file_and_other_names(folder):
    model = nn.Linear(2, 1)
    save_checkpoint(state_of(model, 1), folder, is_best=True)
    save_checkpoint(state_of(model, 2), folder, model_name="model-best.pth.tar")
    assert pointer(folder) == "model.pth.tar-1\n"
    assert load_checkpoint(os.path.join(folder, "model-best.pth.tar"))["epoch"] == 2


def test_a_failed_write_leaves_everything_as_it_was(folder, monkeypatch):
    model = nn.Linear(2, 1)
    save_checkpoint(state_of(model, 1), folder)

    def torn(state, file):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(state_of(model, 2), folder)
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-1"]
    assert pointer(folder) == "model.pth.tar-1\n"


def test_a_failed_pointer_names_the_file_before(folder, monkeypatch):
    model = nn.Linear(2, 1)
    save_checkpoint(state_of(model, 1), folder)
    replace = os.replace

    def no_pointer(source, target):
        if os.path.basename(target) == "checkpoint":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_pointer)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(state_of(model, 2), folder)
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-1", "model.pth.tar-2"]
    assert resume_from_checkpoint(folder, model) == 1


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_checkpoint(str(tmp_path / "nothing"))


def test_damaged_files_are_named(folder):
    save_checkpoint(state_of(nn.Linear(20, 20), 1), folder)
    path = Path(folder, "model.pth.tar-1")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises((RuntimeError, pickle.UnpicklingError), match=r"model\.pth\.tar-1.*is damaged"):
            load_checkpoint(str(path))


def leftovers() -> dict:
    """What programs of others leave in their checkpoints, and what is to be read of it."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    inner = CosineAnnealingLR(optimizer, 50)
    warmup = ConstantWarmupScheduler(optimizer, inner, 1, 1e-5)
    for _ in range(4):
        warmup.step()
    state = {key: value for key, value in vars(warmup).items() if key != "optimizer"}  # as the original saves it
    steps = MultiStepLR(optimizer, [3, 5])
    facts = {"state_dict": model.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    shapes = {"args": Namespace(lr=0.002, names=["a"]), "counts": Counter("aab"), "groups": defaultdict(list, a=[1])}
    numbers = {"val_result": np.float64(81.5), "flag": np.bool_(True), "seed": np.int64(3), "half": np.float16(0.5)}
    return {**facts, **shapes, **numbers, "scheduler": state, "whole": warmup, "steps": steps, "optim": optimizer}


@pytest.mark.parametrize("zipped", [True, False])
def test_9_4_leftovers_of_others_are_read_as_numbers(tmp_path, zipped):
    """(row 9.4) The state dict and the numbers load; no object is made, no switch is needed."""
    path, made = str(tmp_path / "model.pth.tar-3"), leftovers()
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    admitted = torch.serialization.get_safe_globals()
    with pytest.warns(UserWarning, match=r"model\.pth\.tar-3.*\['optim'\] are left out"):
        loaded = load_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == set(admitted)
    assert all(torch.equal(loaded["state_dict"][key], value) for key, value in made["state_dict"].items())
    assert loaded["optimizer"]["param_groups"] == made["optimizer"]["param_groups"] and loaded["optim"] is None
    inner = made["scheduler"]["successor"]
    for wrapper in (loaded["scheduler"], loaded["whole"]):
        assert type(wrapper["successor"]) is dict and "optimizer" not in wrapper["successor"]
        assert (wrapper["last_epoch"], wrapper["cons_lr"]) == (1, 1e-5)
        assert wrapper["successor"]["last_epoch"] == inner.last_epoch == 3
        assert wrapper["successor"]["T_max"] == 50
    assert loaded["steps"]["milestones"] == Counter([3, 5])
    assert loaded["args"] == {"lr": 0.002, "names": ["a"]} and loaded["groups"] == {"a": [1]}
    assert loaded["counts"] == Counter("aab")
    numbers = [loaded[key] for key in ("val_result", "flag", "seed", "half")]
    assert numbers == [81.5, True, 3, 0.5] and [*map(type, numbers)] == [float, bool, int, float]
    live = ConstantWarmupScheduler(*fresh_schedule(), 1, 1e-5)
    live.load_state_dict(loaded["scheduler"])
    live.step()
    made["whole"].step()
    assert live.successor.last_epoch == 4 and live.get_last_lr() == made["whole"].get_last_lr()


def fresh_schedule() -> tuple:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.002, momentum=0.9)
    return optimizer, CosineAnnealingLR(optimizer, 50)


def test_9_4_scalars_of_another_numpy(tmp_path):
    """(row 9.4) numpy 1 calls the module of its scalars `numpy.core`, numpy 2 `numpy._core`."""
    path = tmp_path / "model.pth.tar-3"
    torch.save({"state_dict": {}, "epoch": 3, "val_result": np.float32(0.1)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for room in (b"numpy.core", b"numpy._core"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, re.sub(rb"numpy\._?core", room, data))
        assert load_checkpoint(str(path))["val_result"] == float(np.float32(0.1))


@pytest.mark.parametrize("zipped", [True, False])
def test_9_4_other_objects_are_refused_and_named(tmp_path, zipped):
    """(row 9.4) Nothing of a file runs, whatever stands beside what is known."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    class EvilScalar:
        def __reduce__(self):
            return np.dtype, (Evil(),)

    path = str(tmp_path / "evil")
    for extra in (Evil(), EvilScalar(), [leftovers(), Evil()], Fraction(1, 2)):
        torch.save({"state_dict": {}, "epoch": 1, "extra": extra}, path, _use_new_zipfile_serialization=zipped)
        name = "fractions.Fraction" if isinstance(extra, Fraction) else "posix.mkdir"
        with pytest.raises(pickle.UnpicklingError, match=rf"evil.*refused.*\({name}\).*state dict alone"):
            load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_resume_restores_all_parts(folder, capsys):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, 10)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    save_checkpoint({**state_of(model, 4), **states}, folder)
    fresh = nn.Linear(3, 1)
    fresh_optimizer = torch.optim.SGD(fresh.parameters(), lr=0.5, momentum=0.9)
    fresh_scheduler = CosineAnnealingLR(fresh_optimizer, 10)
    capsys.readouterr()
    assert resume_from_checkpoint(folder, fresh, fresh_optimizer, fresh_scheduler) == 4
    assert torch.equal(fresh.weight, model.weight)
    assert fresh_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(
        fresh_optimizer.state_dict()["state"][0]["momentum_buffer"], states["optimizer"]["state"][0]["momentum_buffer"]
    )
    assert fresh_scheduler.last_epoch == 1
    assert os.path.join(folder, "model.pth.tar-4") in capsys.readouterr().out


def test_strict_loading_names_the_keys(folder):
    save_checkpoint(state_of(nn.Linear(3, 5), 1), folder)
    model = nn.Linear(3, 4)
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(
        RuntimeError, match=r"missing in the file: extra.*weight \(\(5, 3\) in the file, \(4, 3\) in the model"
    ):
        resume_from_checkpoint(folder, model)


def test_what_to_resume_from(tmp_path):
    folder = str(tmp_path)
    assert find_checkpoint(str(tmp_path / "absent")) is None
    assert find_checkpoint(folder) is None
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        resume_from_checkpoint(folder, nn.Linear(1, 1))
    model = nn.Linear(2, 1)
    torch.save(state_of(model, 2), tmp_path / "model-best.pth.tar")
    (tmp_path / "checkpoint").write_text("model-best.pth.tar\n")
    assert os.path.basename(find_checkpoint(folder)) == "model-best.pth.tar"
    for epoch in (9, 10, 2):
        torch.save(state_of(model, epoch), tmp_path / f"model.pth.tar-{epoch}")
    assert os.path.basename(find_checkpoint(folder)) == "model.pth.tar-10"
    (tmp_path / "checkpoint").write_text("model.pth.tar-9\n")
    assert os.path.basename(find_checkpoint(folder)) == "model.pth.tar-9"
    (tmp_path / "checkpoint").write_text("model.pth.tar-11\n")
    with pytest.warns(UserWarning, match=r"model\.pth\.tar-11"):
        assert os.path.basename(find_checkpoint(folder)) == "model.pth.tar-10"


def test_several_models_resume_from_one_epoch(tmp_path):
    model = nn.Linear(2, 1)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    for epoch, where in ((1, folders), (2, folders[:1])):
        for folder in where:
            save_checkpoint(state_of(model, epoch), folder)
    assert find_common_checkpoints(folders) == [os.path.join(folder, "model.pth.tar-1") for folder in folders]
    assert find_common_checkpoints([*folders, str(tmp_path / "third")]) is None


def test_partial_weights(tmp_path, capsys):
    source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    kept = target[1].weight.clone()
    prefixed = {f"module.{key}": value for key, value in source.state_dict().items()}
    for number, content in enumerate((prefixed, {"state_dict": prefixed, "epoch": 1})):
        nn.init.zeros_(target[0].weight)
        torch.save(content, tmp_path / f"{number}.pth")
        load_pretrained_weights(target, str(tmp_path / f"{number}.pth"))
        assert torch.equal(target[0].weight, source[0].weight) and torch.equal(target[1].weight, kept)
        out = capsys.readouterr().out
        assert "Successfully loaded" in out and "1.weight" in out
    torch.save({"other": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.warns(UserWarning, match=r"none\.pth"):
        load_pretrained_weights(target, str(tmp_path / "none.pth"))
