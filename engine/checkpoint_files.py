"""Checkpoint files: only what was trained, loaded without running anything that a file brings along.

The layout is Dassl's (`<run>/<model>/model.pth.tar-<epoch>`, `model-best.pth.tar`, pointer file `checkpoint`), so the
files of other programs of that layout load too: their class-dependent buffers are dropped by name, and the scheduler
objects that old toolboxes pickled into them are read as inert placeholders.
"""

import contextlib
import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_clip.clip.finite import check_state
from dassl_clip.clip.foreign import program_of
from dassl_clip.clip.weights import is_safetensors, load_safetensors, pickled_names
from dassl_clip.results.errors import MissingFileError, UserError, listed
from dassl_clip.results.files import check_regular, write_atomically

from .export import is_export, load_export

logger = logging.getLogger(__name__)

BEST_NAME = "model-best.pth.tar"
POINTER_NAME = "checkpoint"
CLASS_BUFFERS = ("token_prefix", "token_suffix", "token_midfix")  # copies of the class names' embeddings
INERT_MODULES = ("torch.optim.", "dassl.optim.", "numpy.", "collections.defaultdict")
_EPOCH, _STEP = re.compile(r"model\.pth\.tar-\d+"), re.compile(r"step\.pth\.tar-\d+-\d+")
_PLACE = re.compile(f"{_EPOCH.pattern}|{_STEP.pattern}")
# What a checkpoint may say of itself, and whether it is of the kind that is read here.
FACTS: Mapping[str, Callable[[Any], bool]] = {
    "epoch": lambda value: isinstance(value, int),
    "sha256": lambda value: isinstance(value, str),
    "backbone": lambda value: (
        isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "weights_hash"))
    ),
    "classnames": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "identity": lambda value: isinstance(value, dict),
    "data": lambda value: isinstance(value, str),
    "files": lambda value: isinstance(value, dict),
    "left_out": lambda value: isinstance(value, (list, tuple)),
}
# What leftovers are made with; these load as placeholders too.
PLAIN_BUILTINS = ("builtins.dict", "builtins.getattr", "__builtin__.dict", "__builtin__.getattr", "_codecs.encode")


class _Inert:
    """Stands in for an object that an old checkpoint pickled and nobody needs; takes any arguments and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class TornCheckpoint(UserError):
    """A file that is not whole, or not what was saved."""


def epoch_name(epoch: int) -> str:
    """The file name after `epoch` finished epochs."""
    return f"model.pth.tar-{epoch}"


def step_name(epoch: int, step: int) -> str:
    """The file name after `epoch` finished epochs and `step` steps of the next one."""
    return f"step.pth.tar-{epoch}-{step}"


def save_checkpoint(state: Mapping[str, Any], path: Path, point: bool) -> None:
    """Write a checkpoint, then (with `point`) the pointer file that names it for a resume."""
    write_atomically(path, lambda file: torch.save(state, file))
    if point:
        write_atomically(path.with_name(POINTER_NAME), lambda file: file.write(f"{path.name}\n".encode()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint or a plain state dict onto the CPU.

    Returns:
        A dict with at least `state_dict`.

    Raises:
        MissingFileError: No such file; the message lists what lies beside it.
        UserError: The file is torn, is not a checkpoint, or holds pickled objects other than optimiser leftovers.
    """
    path = Path(path)
    check_regular(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise MissingFileError(f"no checkpoint at {path}; beside it: {listed(beside) or 'nothing'}")
    if is_safetensors(path):
        return _load_safetensors(path)
    if not _saved_by_torch(path):
        raise TornCheckpoint(f"{path} is not a readable checkpoint (torn or of another kind)")
    _check_sums(path)
    try:
        with _inert_leftovers(path), path.open("rb") as file:  # by a path, torch goes by its ending
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        names = pickled_names(path) if isinstance(error, pickle.UnpicklingError) else []
        if not names:
            raise TornCheckpoint(f"{path} is not a readable checkpoint (torn or of another kind)") from error
        raise UserError(
            f"{path} was refused: it holds pickled objects besides tensors ({listed(names)}), which could run code "
            f"when loaded. Re-save its state dict alone, in the environment that made it"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a checkpoint or a state dict")
    content = content if isinstance(content.get("state_dict"), dict) else {"state_dict": content}
    content = {name: value for name, value in content.items() if not isinstance(value, _Inert)}
    _check_facts(content, path)
    return content


def _check_sums(path: Path) -> None:
    """Raise a TornCheckpoint if a bit of a zip archive has changed; torch writes checksums, but does not check them."""
    with path.open("rb") as file:
        if file.read(1) == b"\x80":  # torch's oldest format, a pickle
            return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except Exception as error:  # a damaged directory makes its reader raise almost anything
        raise TornCheckpoint(f"{path} is not a readable checkpoint (torn or of another kind)") from error
    if wrong is not None:
        raise TornCheckpoint(f"{path} is damaged: the checksum of {wrong!r} in it is another one")


def _load_safetensors(path: Path) -> dict[str, Any]:
    """The content of a safetensors file: an export of a run, or a state dict.

    Raises:
        UserError: It is not whole, or an export without the one learned part that is wanted.
    """
    if not is_export(path):
        return {"state_dict": load_safetensors(path)}
    export = load_export(path)
    if len(export.learned) != 1:
        found = listed(export.learned) or "none: the run refines another, or learns nothing"
        method = export.record["method"]
        raise UserError(f"{path} is an export of {method} whose learned parts are {found}; one is wanted")
    ((name, state),) = export.learned.items()
    left_out = list(export.storage.left_out.get(name, ()))
    return {"state_dict": state, "backbone": export.backbone, "classnames": export.classnames, "left_out": left_out}


def _saved_by_torch(path: Path) -> bool:
    """Whether a file begins as `torch.save` writes it: a zip archive or a pickle.

    Anything else is kept away from `torch.load`: before torch 2.6 an archive of torch's oldest format could run code
    in spite of `weights_only`.
    """
    with open(path, "rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _check_facts(content: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError if what a checkpoint says of itself is not of the kind that this program writes."""
    wrong = [name for name, fits in FACTS.items() if content.get(name) is not None and not fits(content[name])]
    if not all(isinstance(name, str) for name in content["state_dict"]):
        wrong.append("state_dict")
    if "sha256" in content and not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        wrong.append("sha256")
    if wrong:
        raise UserError(f"{path}: what it says of {', '.join(wrong)} cannot be read; get it again")


@contextlib.contextmanager
def _inert_leftovers(path: Path) -> Iterator[None]:
    """A context in which the optimiser objects of old toolboxes' files load as placeholders; others stay refused."""
    names = [name for name in pickled_names(path) if name not in PLAIN_BUILTINS]
    if not names or not all(name.startswith(INERT_MODULES) for name in names):
        yield
        return
    logger.info("%s: read as placeholders, not needed: %s", path.name, listed(names))
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([_stand_in(name) for name in (*names, *PLAIN_BUILTINS)])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(admitted)


def _stand_in(name: str) -> Callable[..., object]:
    """A placeholder that goes by a full name; torch looks it up by that."""
    module, _, own = name.rpartition(".")
    if name != "collections.defaultdict":
        return type(own, (_Inert,), {"__module__": module})

    def mapping(*args: object) -> OrderedDict[Any, Any]:
        return OrderedDict()  # torch fills this kind only

    mapping.__module__, mapping.__name__, mapping.__qualname__ = module, own, own
    return mapping


def newest_checkpoint(folder: Path, steps: bool = False) -> Iterator[Path]:
    """Files of a model's folder to resume from: the pointer's first, then the others, the most trained first.

    Args:
        folder: The model's folder inside a run's.
        steps: Also those that were saved inside an epoch.
    """
    pattern = _PLACE if steps else _EPOCH
    pointer = folder / POINTER_NAME
    named = folder / pointer.read_text(errors="replace").strip() if pointer.is_file() else None
    if named is not None and pattern.fullmatch(named.name) and named.is_file():
        yield named
    for path in sorted(filter(lambda p: pattern.fullmatch(p.name), folder.glob("*")), key=_progress, reverse=True):
        if path != named:
            yield path


def remove_steps(folder: Path, keep: int, written: str = "") -> None:
    """Remove the files saved inside an epoch but for the newest `keep`; `written` is the newest, whatever its step."""
    files = [path for path in folder.glob("*") if _STEP.fullmatch(path.name)]
    files.sort(key=lambda path: (path.name == written, _progress(path)), reverse=True)
    for path in files[keep:]:
        path.unlink(missing_ok=True)


def _progress(path: Path) -> tuple[int, int]:
    """Finished epochs, and steps of the next one."""
    epoch, _, step = path.name.split("-", 1)[1].partition("-")
    return int(epoch), int(step or 0)


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load learned parts strictly, after dropping `module.` and the known class-dependent buffers by name.

    Raises:
        UserError: Names or shapes do not fit, or numbers are not finite; the message has the first of them.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    dropped = [name for name in state if name in CLASS_BUFFERS]
    if dropped:
        logger.info("%s: dropped class-dependent buffers %s", source, listed(dropped))
    state = {name: value for name, value in state.items() if name not in CLASS_BUFFERS}
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [f"{name} is no tensor" for name, value in state.items() if not isinstance(value, Tensor)]
    problems += [
        f"{name} is {list(value.shape)}, expected {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and value.shape != own[name].shape
    ]
    if problems:
        program = program_of(state)
        looks = f"it looks like a checkpoint of {program}: " if program else ""
        raise UserError(
            f"{source} does not fit this trainer: {looks}{listed(problems, separator='; ')}. Is it of the same "
            f"trainer, configuration, backbone and (for class-specific parts) classes?"
        )
    check_state(state, source)
    module.load_state_dict(state)
