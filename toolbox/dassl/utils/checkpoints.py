"""Checkpoints on disk: one file an epoch, and a pointer file that names the newest.

A file holds tensors, numbers, strings, lists and dictionaries only, so that it loads with `weights_only=True`. Of the
Python objects in files of others (a whole warm-up schedule, scalars of numpy) the numbers are read, see `leftovers.py`.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .atomic import atomic_write
from .leftovers import Inert, drop_leftovers, leftovers_admitted
from .tools import mkdir_if_missing

POINTER = "checkpoint"
EPOCH_FILE = re.compile(r"model\.pth\.tar-(\d+)$")
BEST_FILE = "model-best.pth.tar"


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Writes a checkpoint, and then the pointer; both appear complete or not at all.

    Args:
        state: `state_dict`, `epoch` (number of finished epochs), `optimizer`, `scheduler`, `val_result`, ...
        save_dir: The folder, made if needed.
        is_best: A copy is written as `model-best.pth.tar`.
        remove_module_from_keys: A leading "module." is cut from the keys of the state dict.
        model_name: The file's name; empty means `model.pth.tar-{epoch}`. The pointer never names `model-best.pth.tar`.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module(state["state_dict"])}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    state = to_plain(state)
    _write(state, os.path.join(save_dir, name))
    print(f"Checkpoint saved to {os.path.join(save_dir, name)}")
    if name != BEST_FILE:
        with atomic_write(os.path.join(save_dir, POINTER), "w") as file:
            file.write(f"{name}\n")
    if is_best and name != BEST_FILE:
        _write(state, os.path.join(save_dir, BEST_FILE))
        print(f'Best checkpoint saved to "{os.path.join(save_dir, BEST_FILE)}"')


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU.

    Raises:
        ValueError: The path is None.
        FileNotFoundError: There is no such file.
        pickle.UnpicklingError: The file holds Python objects of other kinds than `leftovers.py` knows.
        RuntimeError: The file is damaged.
    """
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    if not os.path.isfile(fpath):  # reading a pipe may never end
        raise ValueError(f'"{fpath}" is not a regular file, so it holds no checkpoint')
    damaged = f'The checkpoint "{fpath}" is damaged; remove it and resume from an earlier one'
    if not _saved_by_torch(fpath):
        raise RuntimeError(damaged)
    try:
        with leftovers_admitted():
            return _without_leftovers(torch.load(fpath, map_location="cpu", weights_only=True), fpath)
    except pickle.UnpicklingError as error:
        names = _list_objects(fpath, error)
        if not names:
            raise pickle.UnpicklingError(f"{damaged}. The loader said: {_first_line(error)}") from error
        raise pickle.UnpicklingError(
            f'The checkpoint "{fpath}" is refused: besides tensors and numbers it holds Python objects '
            f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}), and loading them could run any code. Save "
            "its state dict alone, in the program that made it"
        ) from error
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise RuntimeError(damaged) from error


def _without_leftovers(content: Any, fpath: str) -> Any:
    """The content with numbers in place of stand-ins; a warning says which entries held nothing else."""
    lost = [key for key, value in content.items() if isinstance(value, Inert)] if isinstance(content, dict) else []
    content = drop_leftovers(content)
    lost = [key for key in lost if content[key] is None]
    if lost:
        warnings.warn(f'The checkpoint "{fpath}": the Python objects under {lost} are left out', stacklevel=3)
    return content


def _list_objects(fpath: str, error: Exception) -> list[str]:
    """Full names of the classes and functions that a file asks for and may not have."""
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # since torch 2.6
    try:
        with leftovers_admitted():
            return sorted(find(fpath))
    except Exception:  # not a zip archive, or an older torch: the first one stands in the error
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _saved_by_torch(fpath: str) -> bool:
    """Whether a file begins as `torch.save` writes it: a zip archive or a pickle.

    Anything else is kept away from `torch.load`: before torch 2.6 an archive of torch's oldest format could run code
    in spite of `weights_only`.
    """
    with open(fpath, "rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def find_checkpoint(directory: str) -> str | None:
    """The file to resume from: the one that the pointer names, or else the newest epoch's, or else the best one.

    A pointer to the best file (as the original toolbox writes it) gives way to an epoch file.

    Returns:
        The path, or None when the folder holds no checkpoint.
    """
    if not os.path.isdir(directory):
        return None
    epochs = _list_epochs(directory)
    newest = f"model.pth.tar-{max(epochs)}" if epochs else None
    named = _read_pointer(directory)
    if named is not None and not os.path.isfile(os.path.join(directory, named)):
        warnings.warn(
            f'The pointer in "{directory}" names "{named}", which does not exist; '
            f"{'resuming from ' + newest if newest else 'there is no other epoch file'}",
            stacklevel=2,
        )
        named = None
    if named == BEST_FILE and newest is not None:
        named = newest
    best = BEST_FILE if os.path.isfile(os.path.join(directory, BEST_FILE)) else None
    chosen = named or newest or best
    return os.path.join(directory, chosen) if chosen else None


def find_common_checkpoints(directories: Sequence[str]) -> list[str] | None:
    """The files to resume several models from, all of one epoch: a run may have stopped between two models.

    Returns:
        One path for each folder; None when some folder has no checkpoint or they share no epoch.
    """
    files = [find_checkpoint(directory) for directory in directories]
    if None in files:
        return None
    if len({os.path.basename(fpath) for fpath in files}) > 1:
        common = set.intersection(*(_list_epochs(directory) for directory in directories))
        if not common:
            return None
        files = [os.path.join(directory, f"model.pth.tar-{max(common)}") for directory in directories]
    return files


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Any | None = None, scheduler: Any | None = None
) -> int:
    """Restores a model, strictly, and the states of its optimizer and scheduler where there are any.

    Returns:
        The number of finished epochs.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        RuntimeError: The state dict does not fit the model; the message names the keys.
    """
    fpath = find_checkpoint(fdir)
    if fpath is None:
        raise FileNotFoundError(f'No checkpoint in "{fdir}": expected a file "{POINTER}" that names a file beside it')
    print(f'Loading checkpoint from "{fpath}"')
    return restore(load_checkpoint(fpath), fpath, model, optimizer, scheduler)


def restore(
    checkpoint: dict[str, Any], fpath: str, model: nn.Module, optimizer: Any | None = None, scheduler: Any | None = None
) -> int:
    """Puts a loaded checkpoint into a model, an optimizer and a scheduler; returns the number of finished epochs."""
    load_strictly(model, checkpoint["state_dict"], fpath)
    print("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
            print(f"Loaded {name}")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_strictly(model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads a state dict whose keys and sizes must be the model's.

    Raises:
        RuntimeError: They are not; the message names them and the file.
    """
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise RuntimeError(
            f'The checkpoint "{source}" does not fit the model ({type(model).__name__}): '
            f"{_list_faults(model, state_dict) or error}. Was it trained with another configuration or other classes? "
            "Use another OUTPUT_DIR or RESUME to start from scratch."
        ) from error


def _list_faults(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> str:
    """The keys that are missing, unknown or of another size; empty if there are none."""
    own = model.state_dict()
    faults = {
        "missing in the file": [key for key in own if key not in state_dict],
        "unknown to the model": [key for key in state_dict if key not in own],
        "of another size": [
            f"{key} ({tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model)"
            for key, value in state_dict.items()
            if key in own and hasattr(value, "shape") and value.shape != own[key].shape
        ],
    }
    return "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)


def strip_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose keys have lost a leading "module."."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def to_plain(value: Any) -> Any:
    """A copy in which numpy scalars are numbers and numpy arrays are tensors."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if type(value) is dict:
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_plain(item) for item in value)
    return value


def _write(state: dict[str, Any], fpath: str) -> None:
    content = io.BytesIO()  # torch hides why a file cannot be written to
    torch.save(state, content)
    with atomic_write(fpath) as file:
        file.write(content.getbuffer())


def _read_pointer(directory: str) -> str | None:
    fpath = os.path.join(directory, POINTER)
    if not os.path.isfile(fpath):
        return None
    with open(fpath, encoding="utf-8", errors="replace") as file:
        return file.readline().replace("\0", "").strip() or None


def _list_epochs(directory: str) -> set[int]:
    return {int(match[1]) for name in os.listdir(directory) if (match := EPOCH_FILE.match(name))}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return lines[0] if lines else (str(error).splitlines() or [""])[0]
