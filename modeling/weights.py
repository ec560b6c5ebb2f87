"""Files of CLIP weights: read in whatever form they come, checked against a model, and hashed.

A file is known by its content, not by its name: safetensors, a state dict saved by torch (plain, or inside a training
checkpoint), or the TorchScript archive in which OpenAI publishes its models. Entries may be named as open_clip and
OpenAI name them, or as Hugging Face transformers names those of its CLIPModel. Nothing that a file brings along runs.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from .archive import Refused, check_members, read_archive

SAFETENSORS, STATE_DICT, ARCHIVE = "safetensors", "state dict", "OpenAI JIT archive"
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
MOST_WRAPPERS = 8  # a pickled dictionary may hold itself
PREFIXES = ("module.", "_orig_mod.", "model.", "clip.")
# Entries that some programs save although they carry no weights.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
NO_WEIGHTS_ENDS = ("embeddings.position_ids",)
TRANSFORMERS_PARTS = (
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^final_layer_norm\.", "ln_final."),
)
TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read a file of weights.

    Args:
        path: The file.

    Returns:
        The state dict, free of wrappers, prefixes and entries without weights; and the form it was found in.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not one of the forms above, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_not_found(path))
    form = _form(path)
    state: object
    if form == SAFETENSORS:
        state = _load_safetensors(path)
    elif form == ARCHIVE:
        state = read_archive(path)
    else:
        state = _load_pickle(path)
    return _unwrap(state, path), form


def load_into(model: nn.Module, state: dict[str, Tensor], label: str, wanted: str) -> None:
    """Load a state dict into a model, entry by entry the same, or refuse it.

    Args:
        model: An open_clip model.
        state: The state dict from `read_weights`.
        label: What the error calls the file.
        wanted: What the error calls the model.

    Raises:
        ValueError: Entries are missing, unknown or of other shapes; the message says what the file looks like.
    """
    target = model.state_dict()
    arranged = _arrange(model, state)
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
        raise ValueError(
            f"{label} does not fit {wanted}: {'; '.join(part for part in parts if part)}. "
            f"{describe_weights(arranged)} Name the architecture that the file belongs to."
        )
    model.load_state_dict(state)


def describe_weights(state: dict[str, Tensor]) -> str:
    """A sentence on the model that a state dict belongs to, with the names of the architectures that it fits."""
    sizes = _sizes(state)
    if not sizes:
        first = ", ".join(sorted(state)[:3])
        kind = (
            "Hugging Face transformers' CLIPModel" if any("text_model." in k for k in state) else "no CLIP known here"
        )
        return f"The file looks like {kind} (first entries: {first})."
    names = [name for name in open_clip.list_models() if _sizes_of_config(open_clip.get_model_config(name)) == sizes]
    tower = "ResNet" if isinstance(sizes["layers"], tuple) else "ViT"
    patch = f", patch {sizes['patch']}" if sizes["patch"] else ""
    looks = (
        f"{tower} of width {sizes['width']}, layers {sizes['layers']}{patch}, {sizes['image']} pixels; text width "
        f"{sizes['text_width']}, {sizes['text_layers']} layers, {sizes['context']} tokens, vocabulary {sizes['vocab']}"
        f"; embedding {sizes['embed']}"
    )
    return f"The file looks like {' or '.join(names) or 'no architecture of open_clip'}: {looks}."


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
        names = _members(path) if zipfile.is_zipfile(path) else []
    except Refused:
        raise
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as weights: {error}; get it again") from error
    if names:
        if any(name.endswith(".npy") for name in names):
            raise ValueError(
                f"{path} is a numpy archive (big_vision's form); convert it to open_clip's state dict first"
            )
        return ARCHIVE if any(name.endswith("constants.pkl") for name in names) else STATE_DICT
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    if start.startswith(b"\x80"):
        return STATE_DICT
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the weights; fetch them with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not weights: the download went wrong; fetch the file again")
    raise ValueError(
        f"{path} ({path.stat().st_size} bytes) is neither safetensors nor a file saved by torch; it may be cut short"
    )


def _members(path: Path) -> list[str]:
    """Names in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path)
        return archive.namelist()


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); get it again") from error


def _load_pickle(path: Path) -> object:
    """What torch saved in `path`, tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain weights ({reason}). A file "
            f"with other Python objects in it is refused, since loading it could run code; save its state dict alone, "
            f"best as safetensors"
        ) from error


def _unwrap(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, under its models' own names."""
    for _ in range(MOST_WRAPPERS):
        if not isinstance(state, dict) or any(isinstance(value, Tensor) for value in state.values()):
            break
        inner = next((key for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = state[inner]
    named = isinstance(state, dict) and any(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not isinstance(state, dict) or not named:
        found = f"the entries {sorted(map(str, state))[:5]}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ValueError(
            f"{path} holds no state dict: found {found}, expected names with tensors, or one of {WRAPPERS}"
        )
    state = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), "")
    while prefix:
        state = {name[len(prefix) :]: value for name, value in state.items()}
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), "")
    return {
        name: value for name, value in state.items() if name not in NO_WEIGHTS and not name.endswith(NO_WEIGHTS_ENDS)
    }


def _arrange(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries under the names that open_clip has, with the text tower where the model's class has it."""
    state = _from_transformers(state) if "text_model.final_layer_norm.weight" in state else dict(state)
    inside = hasattr(model, "text")
    if inside and "positional_embedding" in state:
        return {f"text.{name}" if name.startswith(TEXT_PARTS) else name: value for name, value in state.items()}
    if not inside and "text.positional_embedding" in state:
        return {name.removeprefix("text."): value for name, value in state.items()}
    return state


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's entries of Hugging Face transformers' CLIPModel."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head in ("text_projection", "visual_projection"):
            renamed["text_projection" if head == "text_projection" else "visual.proj"] = value.T.contiguous()
            continue
        for old, new in TRANSFORMERS_PARTS:
            rest = re.sub(old, new, rest)
        renamed[{"vision_model": "visual.", "text_model": ""}.get(head, f"{head}.") + rest if rest else head] = value
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return renamed


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
    if not path.parent.is_dir():
        return f"no weights at {path}: the folder {path.parent} does not exist"
    near = sorted(p.name for p in path.parent.iterdir() if p.is_file())[:5]
    return f"no weights at {path}; the folder holds {', '.join(near) or 'no files'}"
