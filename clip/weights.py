"""Files of CLIP weights: read in whatever form they come, and hashed.

A file is known by its content, not by its name: safetensors, a state dict saved by torch (plain, or inside a training
checkpoint), an index of shards of either, the TorchScript archive in which OpenAI publishes its models, or big_vision's
numpy archive. `layouts.py` knows the names that entries may have, and loads them into a model.

Nothing that a file brings along runs. `torch.jit.load` would run an archive's own code (its classes' `__setstate__`);
here only the archive's tensors are read: its pickle may name tensors, plain containers and modules, which become inert
holders of their entries.
"""

import contextlib
import hashlib
import json
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl_clip.results.errors import MissingFileError, UserError, listed
from dassl_clip.results.files import kind_of, no_file

from .finite import check_state
from .layouts import unwrap

SAFETENSORS, STATE_DICT, ARCHIVE = "safetensors", "state dict", "OpenAI JIT archive"
SHARDS, NUMPY = "index of shards", "numpy archive"
PART = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")
MOST_INDEX = 16 << 20  # bytes of an index of shards
# Files of other formats: how they begin, and what to do.
OTHER_FORMATS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"),
    (b"\x89HDF", "a Keras file (HDF5); take the same model in PyTorch's form"),
    (b"GGUF", "a GGUF file of llama.cpp; take the same model in PyTorch's form"),
    (b"\x1f\x8b", "packed by gzip; unpack it first"),
)
STORAGES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
            "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
            "Bool": torch.bool}  # fmt: skip
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
PICKLES = 4  # with which a file of torch's older format begins: two numbers, the machine, the content
MOST_GROWTH = 64 << 20  # bytes
MOST_TENSORS = 100_000  # modules may share others, so a small file could name any number of tensors


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read a file of weights.

    Args:
        path: The file.

    Returns:
        The state dict, free of wrappers, prefixes and entries without weights (empty for a numpy archive, which
        `load_numpy` reads); and the form it was found in.

    Raises:
        MissingFileError: There is no such file.
        UserError: The file is not one of the forms above, holds more than tensors, or numbers that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(_not_found(path))
    if part := PART.search(path.name):
        indices = [
            file.name for file in path.parent.glob("*.index.json") if path.name in file.read_text(errors="replace")
        ]
        raise UserError(
            f"{path} is one of {int(part[1])} parts; give {listed(indices) or 'their *.index.json'} instead"
        )
    form = _form(path)
    state: object
    if form == NUMPY:
        return {}, form
    if form == SHARDS:
        state = _load_shards(path)
    elif form == SAFETENSORS:
        state = load_safetensors(path)
    elif form == ARCHIVE:
        state = read_archive(path)
    else:
        state = _load_pickle(path)
    state = unwrap(state, path)
    check_state(state, str(path))
    return state, form


def hash_state(state: Mapping[str, Tensor]) -> str:
    """sha256, in hex, over the name, shape, dtype and bytes of every entry of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _form(path: Path) -> str:
    """The form of a file, from its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        names = []
        if start.startswith(b"PK") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_members(archive, path)
                names = archive.namelist()
    except Refused:
        raise
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as weights: {error}; get it again") from error
    if names:
        if any(name.endswith(".npy") for name in names):
            return NUMPY
        if not any(name.endswith("data.pkl") for name in names):
            raise UserError(f"{path} is a zip archive of other files ({listed(names, 3)}); unpack it first")
        return ARCHIVE if any(name.endswith("constants.pkl") for name in names) else STATE_DICT
    if is_safetensors(path):
        return SAFETENSORS
    if start.startswith(b"\x80"):
        return STATE_DICT
    if start.lstrip().startswith(b"{"):
        return SHARDS
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path} is a web page, not weights: the download went wrong; fetch the file again")
    for mark, what in OTHER_FORMATS:
        if start.startswith(mark):
            raise UserError(f"{path} is {what}")
    raise UserError(
        f"{path} ({path.stat().st_size} bytes) is neither safetensors nor a file saved by torch; it may be cut short"
    )


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from error


def _load_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index of shards (`*.index.json`) names, which lie beside it."""
    try:
        if path.stat().st_size > MOST_INDEX:
            raise UserError(f"more than {MOST_INDEX:,} bytes")
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is JSON, but no index of shards with 'weight_map' ({error!r:.80}); give the file of weights"
        ) from error
    missing = [name for name in files if Path(name).name != name or not (path.parent / name).is_file()]
    if missing:
        raise MissingFileError(
            f"{path} names {len(files)} files of weights, of which {len(missing)} are not beside it: {listed(missing)}"
        )
    state: dict[str, Tensor] = {}
    for name in files:
        part = path.parent / name
        loaded = load_safetensors(part) if _form(part) == SAFETENSORS else _load_pickle(part)
        if not isinstance(loaded, dict):
            raise UserError(f"{part} holds a {type(loaded).__name__} in place of a state dict")
        state |= loaded
    return state


def _load_pickle(path: Path) -> object:
    """What torch saved in `path`, tensors and plain containers only."""
    try:
        with path.open("rb") as file:  # by a path, torch goes by its ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        names = pickled_names(path)
        if names:
            raise UserError(
                f"{path} was refused: it holds Python objects besides tensors ({listed(names)}), which could run code "
                "when loaded; save its state dict alone, best as safetensors, in the environment that made it"
            ) from None
        raise UserError(f"{path} cannot be read as weights saved by torch; it may be cut short") from error


def _not_found(path: Path) -> str:
    """A sentence on a missing file of weights, with what lies beside it."""
    if path.is_dir():
        return f"MODEL.BACKBONE.WEIGHTS must be a file, {path} is a folder; for a folder give the name local-dir:{path}"
    if kind_of(path) != "nothing":
        return f"MODEL.BACKBONE.WEIGHTS: {no_file(path)}"
    if not path.parent.is_dir():
        return f"no weights at {path}: the folder {path.parent} does not exist"
    near = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    return f"no weights at {path}; the folder holds {listed(near) or 'no files'}"


# ------------------------------------------------------------------------------------------ archives and pickles


class Refused(UserError):
    """An archive that is damaged or holds more than weights; the message says what."""


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a zip archive that would grow when read: torch stores tensors plainly and compresses only small texts.

    Raises:
        Refused: Its members hold far more bytes than the file.
    """
    size, content = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if content > size + MOST_GROWTH:
        raise Refused(f"{path} is refused: its {size:,} bytes would grow to {content:,}, which no file of weights does")


def read_archive(path: Path) -> dict[str, Tensor]:
    """The state dict of the module that a TorchScript archive holds.

    Raises:
        Refused: The archive is damaged, or its pickle names anything but tensors, containers and modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            names = archive.namelist()
            pickled = next(name for name in names if name.count("/") == 1 and name.endswith("/data.pkl"))
            folder = pickled.partition("/")[0]
            if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
                raise Refused(f"{path} was written in another byte order than this program reads")
            with archive.open(pickled) as file:
                root = _Reader(file, archive, folder).load()
        return dict(_tensors(root))
    except Refused:
        raise
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        reason = str(error).splitlines()[0] if str(error) else "nothing can be said of it"
        raise Refused(
            f"{path} cannot be read as an archive of OpenAI's ({type(error).__name__}: {reason}); get it again, or "
            f"save its state dict alone, best as safetensors"
        ) from error


def pickled_names(path: Path) -> list[str]:
    """Names of the classes and functions that a file saved by torch asks for beyond tensors and plain containers.

    Of both of torch's formats, the zip archive and the older row of pickles; nothing of the file is run.
    """
    from torch._weights_only_unpickler import _get_allowed_globals

    def pickles() -> Iterator[Iterable[tuple[Any, Any, Any]]]:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(path):
                yield from (pickletools.genops(file) for _ in range(PICKLES))
                return
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            yield pickletools.genops(archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl"))))

    names: set[str] = set()
    with contextlib.suppress(Exception):  # a torn file, or one of another kind: what was read until there counts
        for codes in pickles():
            texts: list[str] = []
            for code, argument, _ in codes:
                if code.name == "GLOBAL":
                    names.add(argument.replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.add(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    return sorted(names - _get_allowed_globals().keys())


class _Module:
    """An object of the archive: its entries by name, and nothing that runs."""

    def __init__(self, *args: object) -> None:
        self.entries: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module has a state of its own making")
        self.entries = state


class _Reader(pickle.Unpickler):
    """Reads the pickle of an archive; every name in it that is not known here is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global of the pickle."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        if f"{module}.{name}" not in KNOWN_GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of weights")
        return KNOWN_GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that `("storage", dtype, key, device, number)` names, as a tensor `[number]`."""
        _, dtype, key, _, number = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            storage = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if storage.numel() != number:
                raise pickle.UnpicklingError(f"storage {key} holds {storage.numel()} numbers instead of {number}")
            self.storages[key] = storage
        return self.storages[key]


def _rebuild(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *rest: object) -> Tensor:
    """A tensor that lies in a storage; torch refuses sizes that reach beyond it."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


KNOWN_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch.jit._pickle.restore_type_tag": lambda value, tag: value,  # a container, without the name of its type
    **{f"torch.jit._pickle.{name}": list for name in LISTS},
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
}


def _tensors(root: object) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module and of all below it."""
    pending, count = [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, _Module):
            raise pickle.UnpicklingError(f"it holds a {type(module).__name__} in place of a module")
        for name, value in module.entries.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
        count += len(module.entries)
        if count > MOST_TENSORS:
            raise pickle.UnpicklingError(f"it names more than {MOST_TENSORS} tensors")
