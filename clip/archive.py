"""Weights out of a TorchScript archive, the form in which OpenAI publishes its models, without running TorchScript.

`torch.jit.load` runs what an archive brings along (its classes' `__setstate__`). Here only the archive's tensors are
read: its pickle may name tensors, plain containers and modules, which become inert holders of their entries.
"""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
PICKLES = 4  # with which a file of torch's older format begins: two numbers, the machine, the content
MOST_GROWTH = 64 << 20  # bytes
MOST_TENSORS = 100_000  # modules may share others, so a small file could name any number of tensors


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

    names: set[str] = set()
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    check_members(archive, path)
                    found = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                    _add_globals(names, pickletools.genops(archive.read(found)))
            for _ in range(0 if zipfile.is_zipfile(path) else PICKLES):
                _add_globals(names, pickletools.genops(file))
    except Exception:  # a torn file, or one of another kind: what was read until there counts
        pass
    return sorted(names - _get_allowed_globals().keys())


def _add_globals(names: set[str], codes: Iterable[tuple[Any, Any, Any]]) -> None:
    """Add the full names of the globals that a pickle asks for."""
    texts: list[str] = []
    for code, argument, _ in codes:
        if code.name == "GLOBAL":
            names.add(argument.replace(" ", "."))
        elif code.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)


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
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of weights")

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


def _untagged(value: object, tag: str) -> object:
    """A container, without the name of its type."""
    return value


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
