"""Files of CLIP weights: read in whatever form they come, checked against a model, and hashed.

A file is known by its content, not by its name: safetensors, a state dict saved by torch (plain, or inside a training
checkpoint), an index of shards of either, the TorchScript archive in which OpenAI publishes its models, or big_vision's
numpy archive. `layouts.py` knows the names that entries may have. Nothing that a file brings along runs.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.convert import load_big_vision_weights
from torch import Tensor, nn

from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import kind_of, no_file

from .archive import Refused, check_members, pickled_names, read_archive
from .finite import check_state
from .layouts import arrange, known_kind, unwrap
from .listing import listed

SAFETENSORS, STATE_DICT, ARCHIVE = "safetensors", "state dict", "OpenAI JIT archive"
SHARDS, NUMPY = "index of shards", "numpy archive"
PART = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")
MOST_INDEX = 16 << 20  # bytes of an index of shards
# What begins like this is no weights that are read here, and what to do.
STRANGERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"),
    (b"\x89HDF", "a Keras file (HDF5); take the same model in PyTorch's form"),
    (b"GGUF", "a GGUF file of llama.cpp; take the same model in PyTorch's form"),
    (b"\x1f\x8b", "packed by gzip; unpack it first"),
)


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


def load_into(model: nn.Module, state: dict[str, Tensor], label: str, wanted: str) -> None:
    """Load a state dict into a model, entry by entry the same, or refuse it.

    Args:
        model: An open_clip model.
        state: The state dict from `read_weights`.
        label: What the error calls the file.
        wanted: What the error calls the model.

    Raises:
        UserError: Entries are missing, unknown or of other shapes; the message says what the file looks like.
    """
    target = model.state_dict()
    kind, arranged = known_kind(state), arrange(model, state, label)
    state = dict(arranged)
    for name, value in target.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
        elif name in state and state[name].shape != value.shape and state[name].numel() == value.numel() == 1:
            state[name] = state[name].reshape(value.shape)
    missing = sorted(target.keys() - state.keys())
    unknown = sorted(state.keys() - target.keys())
    others = [
        f"{name} is {list(state[name].shape)} instead of {list(target[name].shape)}"
        for name in sorted(target.keys() & state.keys())
        if state[name].shape != target[name].shape
    ]
    if missing or unknown or others:
        parts = [
            _some("entries of another shape", others),
            _some("missing entries", missing),
            _some("unknown entries", unknown),
        ]
        raise UserError(
            f"{label} does not fit {wanted}: {'; '.join(part for part in parts if part)}. "
            + (f"The file is {kind}." if kind else f"{describe_weights(arranged)} Name its architecture.")
        )
    model.load_state_dict(state)


def describe_weights(state: dict[str, Tensor]) -> str:
    """A sentence on the model that a state dict belongs to, with the names of the architectures that it fits."""
    sizes = _sizes(state)
    if not sizes:
        return f"The file looks like no CLIP known here (first entries: {listed(sorted(state), 3)})."
    names = [name for name in open_clip.list_models() if _sizes_of_config(open_clip.get_model_config(name)) == sizes]
    tower = "ResNet" if isinstance(sizes["layers"], tuple) else "ViT"
    patch = f", patch {sizes['patch']}" if sizes["patch"] else ""
    looks = (
        f"{tower} of width {sizes['width']}, layers {sizes['layers']}{patch}, {sizes['image']} pixels; text width "
        f"{sizes['text_width']}, {sizes['text_layers']} layers, {sizes['context']} tokens, vocabulary {sizes['vocab']}"
        f"; embedding {sizes['embed']}"
    )
    return f"The file looks like {listed(names, separator=' or ') or 'no architecture of open_clip'}: {looks}."


def hash_weights(model: nn.Module) -> str:
    """`hash_state` of a model's state dict."""
    return hash_state(model.state_dict())


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
        names = _members(path) if start.startswith(b"PK") and zipfile.is_zipfile(path) else []
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
    for mark, what in STRANGERS:
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


def _members(path: Path) -> list[str]:
    """Names in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path)
        return archive.namelist()


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


def load_numpy(model: nn.Module, path: Path, wanted: str) -> None:
    """Load a numpy archive of big_vision (SigLIP) into an open_clip model, by open_clip's own converter.

    Raises:
        UserError: It is not that of this model.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            names = [name for name in content.files if not name.startswith("opt/")]
            root = "params/" if "params/b" in names else ""
            numbers = sum(content[name].size for name in names if name.startswith(root))
        load_big_vision_weights(model, str(path))
    except Exception as error:  # the converter walks through the modules that it expects, whatever the model
        raise UserError(
            f"{path} is a numpy archive (big_vision's form) that open_clip cannot convert for {wanted} ({error!r:.120})"
            "; it is read for SigLIP's architectures, such as ViT-B-16-SigLIP"
        ) from error
    check_state(model.state_dict(), str(path))
    own = sum(value.numel() for value in model.state_dict().values())
    if numbers != own:  # the converter takes no notice of blocks that the model has not
        raise UserError(f"{path} does not fit {wanted}: it holds {numbers:,} numbers, and the model {own:,}")


def _sizes(state: dict[str, Tensor]) -> dict[str, object]:
    """The sizes that tell architectures apart, read from a state dict of OpenAI's or open_clip's form."""
    text = "text." if "text.positional_embedding" in state else ""
    try:
        vit = "visual.proj" in state
        embed = state[text + "text_projection"].shape[-1]
        sizes = {
            "width": state["visual.conv1.weight" if vit else "visual.layer1.0.conv1.weight"].shape[0],
            "text_width": state[text + "ln_final.weight"].shape[0],
            "text_layers": _count(state, rf"{re.escape(text)}transformer\.resblocks\.(\d+)\."),
            "context": state[text + "positional_embedding"].shape[0],
            "vocab": state[text + "token_embedding.weight"].shape[0],
            "embed": embed,
        }
        if vit:
            patch = state["visual.conv1.weight"].shape[-1]
            grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
            blocks = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
            return {**sizes, "layers": blocks, "patch": patch, "image": patch * grid}
        grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        stages = tuple(_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        return {**sizes, "layers": stages, "patch": None, "image": 32 * grid}
    except KeyError:
        return {}


def _sizes_of_config(config: dict[str, Any]) -> dict[str, object]:
    """The same sizes of one of open_clip's architectures; empty for towers from other packages."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or text.get("embed_cls") or "width" not in vision:
        return {}
    image = vision.get("image_size", 224)
    layers = vision.get("layers", 12)
    return {
        "width": vision["width"],
        "text_width": text.get("width", 512),
        "text_layers": text.get("layers", 12),
        "context": text.get("context_length", 77),
        "vocab": text.get("vocab_size", 49408),
        "embed": config["embed_dim"],
        "layers": tuple(layers) if isinstance(layers, list) else layers,
        "patch": None if isinstance(layers, list) else vision.get("patch_size", 16),
        "image": image[0] if isinstance(image, list | tuple) else image,
    }


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """Number of different first groups of `pattern` among the names."""
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})


def _some(what: str, entries: list[str], shown: int = 3) -> str:
    """ "what (n): first, second, third, ..." or an empty text."""
    more = ", ..." if len(entries) > shown else ""
    return f"{what} ({len(entries)}): {', '.join(entries[:shown])}{more}" if entries else ""


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
