"""The state dict of a CLIP under open_clip's names, from whatever names and wrappings a file has, and into a model.

Known are open_clip's and OpenAI's own, transformers' CLIPModel, Apple's MobileCLIP and Long-CLIP, inside the wrappings
of training programs (`state_dict`, `module.`, `base_model.model.`, ...). Known layouts that cannot be read are named.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.convert import convert_state_dict, load_big_vision_weights
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from dassl_clip.results.errors import UserError, listed

from .finite import check_state

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "ema", "state_dict_ema", "model_ema")
MOST_WRAPPERS = 8  # a pickled dictionary may hold itself
# Entries that some programs save although they carry no weights.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
NO_WEIGHTS_ENDS = ("embeddings.position_ids",)
SCALE = "logit_scale"  # every CLIP has one, beside its towers: what stands before it stands before all names
TRANSFORMERS_MARK = "text_model.final_layer_norm.weight"
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
POSITIONS = ("positional_embedding", "text.positional_embedding", "text_model.embeddings.position_embedding.weight")
GRID = "visual.positional_embedding"
APPLE = "image_encoder.model."
LONG_CLIP, LONG_CLIP_KEPT = "positional_embedding_res", 20  # Long-CLIP keeps CLIP's first rows and trains the others
# Files that are often taken for weights of a CLIP: a pattern that some name has, one that none has, what they are.
NEVER = r"(?!)"
KINDS = (
    (r"(^|\.)lora_|\.base_layer\.", NEVER, "PEFT's LoRA, not merged into its model; save model.merge_and_unload()"),
    (r"^learned\.", NEVER, "an export of a run of this project, which holds no backbone; --model-dir takes it"),
    (r"^vision_model\.head\.probe$", NEVER, "transformers' SiglipModel; take the same model in open_clip's form, "
                                            "such as hf-hub:timm/ViT-B-16-SigLIP"),
    (r"^text_model\.", r"^vision_model\.", "the text tower alone of transformers' CLIPModel"),
    (r"^vision_model\.", r"^text_model\.", "the image tower alone of transformers' CLIPModel"),
    (rf"^{APPLE}", NEVER, "Apple's MobileCLIP; open_clip reads those of MobileCLIP-S1, MobileCLIP-S2 and MobileCLIP-B"),
    (r"^prompt_learner\.|^ctx$", NEVER, "a learned prompt, without a backbone; MODEL.INIT_WEIGHTS takes it"),
    (r"^blocks\.\d+\.attn\.qkv\.", NEVER, "an image tower of timm, without a text tower"),
)  # fmt: skip


def unwrap(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, under its models' own names.

    Raises:
        UserError: There is none, or more than one that could be meant.
    """
    for _ in range(MOST_WRAPPERS):
        if not isinstance(state, dict) or any(isinstance(value, Tensor) for value in state.values()):
            break
        inner = [key for key in WRAPPERS if isinstance(state.get(key), dict) and state[key]]
        if not inner:
            break
        if len(inner) > 1:
            logger.warning("%s: its entry %r is taken, and not %s", path, inner[0], listed(inner[1:]))
        state = state[inner[0]]
    content = state.items() if isinstance(state, dict) else ()
    named = {name: value for name, value in content if isinstance(name, str) and isinstance(value, Tensor)}
    if not named:
        keys = f"the entries {listed(sorted(map(str, state)))}" if isinstance(state, dict) else ""
        raise UserError(
            f"{path} holds no state dict: found {keys or f'a {type(state).__name__}'}; expected names with tensors, "
            f"or one of {listed(WRAPPERS)}"
        )
    plain = _unprefixed(named, path).items()
    return {key: value for key, value in plain if key not in NO_WEIGHTS and not key.endswith(NO_WEIGHTS_ENDS)}


def _unprefixed(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The entries of the one CLIP of a state dict, without what a training program put before their names."""
    scales = (name for name in state if name.rpartition(".")[2] == SCALE and ".attn." not in name)
    prefixes = sorted({name.removesuffix(SCALE) for name in scales}, key=lambda prefix: (len(prefix), prefix))
    if not prefixes or not prefixes[0]:
        return state
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several models, under {listed(prefixes)}; save the one that is meant alone")
    prefix = prefixes[0]
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        logger.warning("%s: %d entries outside %r are left out: %s", path, len(others), prefix, listed(others))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether entries have the names of transformers' CLIPModel."""
    return TRANSFORMERS_MARK in state


def text_positions(state: Mapping[str, Tensor]) -> int | None:
    """Number of positions of the text tower, where a file tells."""
    return next((len(state[name]) for name in POSITIONS if name in state), None)


def arrange(model: nn.Module, state: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """The entries under the names, and with the image positions, that an open_clip model has.

    Raises:
        UserError: Apple's MobileCLIP, and open_clip cannot convert it for this model.
    """
    state = dict(state)
    if any(name.startswith(APPLE) for name in state):
        try:
            state = convert_state_dict(model, state)
        except (KeyError, AttributeError, ImportError, IndexError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{label} holds Apple's MobileCLIP, which open_clip cannot convert for this model ({error!r:.120}); "
                "name MobileCLIP-S1, MobileCLIP-S2 or MobileCLIP-B, whichever it is"
            ) from error
    if is_transformers(state):
        state = _from_transformers(state)
    if (rest := state.pop(LONG_CLIP, None)) is not None:
        kept = state["positional_embedding"][:LONG_CLIP_KEPT]
        state["positional_embedding"] = torch.cat([kept, rest[LONG_CLIP_KEPT:].to(kept)])
    inside = hasattr(model, "text")
    if inside and "positional_embedding" in state:
        state = {f"text.{name}" if name.startswith(TEXT_PARTS) else name: value for name, value in state.items()}
    elif not inside and "text.positional_embedding" in state:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    _fit_grid(model, state, label)
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
        parts = [renamed.get(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        if not any(part is None for part in parts):
            renamed[name.replace("q_proj.", "in_proj_")] = torch.cat([part for part in parts if part is not None])
            for part in "qkv":
                del renamed[name.replace("q_proj", f"{part}_proj")]
    return renamed


def _fit_grid(model: nn.Module, state: dict[str, Tensor], label: str) -> None:
    """Resample the image positions of another image size, as open_clip does; all else must fit."""
    given, own = state.get(GRID), model.state_dict().get(GRID)
    if given is None or own is None or given.dim() != 2 or own.dim() != 2 or len(given) == len(own):
        return
    side = round((len(given) - 1) ** 0.5)
    patch, own_patch = (entries.get("visual.conv1.weight") for entries in (state, model.state_dict()))
    same_patch = patch is not None and own_patch is not None and patch.shape == own_patch.shape
    if side < 1 or side * side + 1 != len(given) or given.shape[1] != own.shape[1] or not same_patch:
        return
    state[GRID] = given.float()
    resize_pos_embed(state, model)
    logger.warning(
        "%s is of images of %d x %d patches: its positions are resampled to the model's %d, as open_clip does",
        label, side, side, len(own) - 1,
    )  # fmt: skip


def load_into(model: nn.Module, state: dict[str, Tensor], label: str, wanted: str) -> None:
    """Load a state dict into a model, entry by entry the same, or refuse it.

    Raises:
        UserError: Entries are missing, unknown or of other shapes; the message says what the file looks like.
    """
    target, text = model.state_dict(), "\n".join(state)
    known = (kind for has, lacks, kind in KINDS if re.search(has, text, re.M) and not re.search(lacks, text, re.M))
    kind, arranged = next(known, ""), arrange(model, state, label)
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
        kinds = {"entries of another shape": others, "missing entries": missing, "unknown entries": unknown}
        parts = [f"{what} ({len(names)}): {listed(names, 3)}" for what, names in kinds.items() if names]
        raise UserError(
            f"{label} does not fit {wanted}: {'; '.join(parts)}. "
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
