"""What a file of weights was trained with, as the configuration files beside it say.

Known are open_clip's `open_clip_config.json` and the `config.json` of Hugging Face transformers' CLIPModel, with
`preprocessor_config.json` for its pixels. Sizes that no tensor's shape tells (heads), the activation and the
preprocessing are in these files alone. A configuration is checked before anything is built from it: whatever a folder
says, no vast model is made.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from dassl_clip.results.errors import UserError, listed

if TYPE_CHECKING:
    from .sources import Source

logger = logging.getLogger(__name__)

CONFIG_FILE, TRANSFORMERS_FILE, PIXELS_FILE = "open_clip_config.json", "config.json", "preprocessor_config.json"
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
MOST_CONFIG = 1 << 20  # bytes of a configuration
QUICK_GELU, GELU = "quick_gelu", "gelu"
ACTIVATIONS = ("quickgelu", "gelu")  # as records name them
TANH_GELUS = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
CLIP_VOCABULARY = 49408
# What transformers takes where a configuration of its CLIPModel says nothing.
TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
                 "max_position_embeddings": 77, "vocab_size": CLIP_VOCABULARY, "layer_norm_eps": 1e-5}  # fmt: skip
VISION_DEFAULTS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                   "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-5}  # fmt: skip
EMBEDDING = 512
OLD_EOS = 2  # of configurations from before the end-of-text id was right: the highest id is read
TOWERS = ("vision_cfg", "text_cfg")
MOST_LAYERS, MOST_PARAMETERS = 1000, 5_000_000_000  # of a tower; the largest of open_clip's has 3.8 billion
MOST_PIXELS = 4096  # along a side
MOST_MEAN = 2.0  # of pixels from 0 to 1, and of their standard deviation
MOST_WORDS = 2_000_000


@dataclass(frozen=True)
class Description:
    """What a configuration says of a model.

    Attributes:
        path: The file.
        config: open_clip's model configuration.
        stated: Sizes of towers and embedding that the file itself names, in transformers' words.
        preprocess: What its preprocessing has other than the standard.
    """

    path: Path
    config: dict[str, Any]
    stated: dict[str, dict[str, object]]
    preprocess: dict[str, Any] = field(default_factory=dict)


def read_open_clip(path: Path) -> Description:
    """Read open_clip's configuration.

    Raises:
        UserError: It is none.
    """
    try:
        content = _read_json(path)
        config = content["model_cfg"]
        preprocess = {key: value for key, value in content.get("preprocess_cfg", {}).items() if key in PREPROCESS_KEYS}
        check_model_config(config, preprocess)
        return Description(path, config, _facts(config), preprocess)
    except UserError as error:
        raise UserError(f"{path} is no open_clip configuration that can be used: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no open_clip configuration with 'model_cfg': {error!r}") from error


def read_transformers(path: Path) -> Description | None:
    """Read the configuration of transformers' CLIPModel; None if the file describes something else.

    Raises:
        UserError: It describes a CLIPModel that open_clip has no form for.
    """
    try:
        tree = _read_json(path)
        keys = ("model_type", "hidden_act", "text_config", "vision_config")  # very short ones name the activation alone
        if not isinstance(tree, dict) or tree.get("model_type", "clip") != "clip" or not tree.keys() & set(keys):
            return None
        config, stated = _from_transformers(tree)
        preprocess = _read_pixels(path.with_name(PIXELS_FILE))
        check_model_config(config, preprocess)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise UserError(f"{path} describes no CLIPModel that open_clip can build: {error}") from error
    return Description(path, config, stated, preprocess)


def describe_folder(folder: Path, transformers_first: bool = False) -> Description | None:
    """The description in a folder, or None.

    Args:
        folder: The folder.
        transformers_first: Whether transformers' configuration counts where both are there, as it does for a file of
            weights with transformers' names.
    """
    ours, theirs = folder / CONFIG_FILE, folder / TRANSFORMERS_FILE
    if ours.is_file() and not (transformers_first and theirs.is_file()):
        return read_open_clip(ours)
    found = read_transformers(theirs) if theirs.is_file() else None
    return found or (read_open_clip(ours) if ours.is_file() else None)


def adopt(source: "Source", described: Description, file: Path) -> "Source":
    """The source with the activation, norms and preprocessing that its weights' own configuration states.

    Args:
        source: What the backbone's name stands for.
        described: What is said beside the file of weights.
        file: That file, for messages.

    Raises:
        UserError: The configuration is that of another architecture.
    """
    stated = described.stated
    differences = [
        f"{group}.{key} is {stated[group][key]} instead of {value}"
        for group, facts in _facts(source.config).items()
        for key, value in facts.items()
        if key in stated.get(group, {}) and stated[group][key] != value
    ]
    if differences:
        raise UserError(
            f"{described.path} beside {file.name} describes another model than {source.name}: {listed(differences)}; "
            "name the architecture that the file belongs to, or keep the file apart from a configuration not its own"
        )
    quick = bool(described.config.get("quick_gelu"))
    if quick != source.quick_gelu:
        logger.warning(
            "%s: %s says that its weights need the activation %s, which is built, and not the %s of the name",
            source.name, described.path, *(ACTIVATIONS if quick else ACTIVATIONS[::-1]),
        )  # fmt: skip
    config = dict(source.config)
    for tower in TOWERS:
        own = {key: described.config[tower].get(key) for key in ("act_kwargs", "norm_kwargs")}
        config[tower] = config[tower] | {key: value for key, value in own.items() if value}
    pixels = {**source.preprocess, **described.preprocess}
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in source.preprocess.items()}
    changed = [f"{key} {value}" for key, value in described.preprocess.items() if known.get(key) != value]
    if changed:
        logger.info("%s: preprocessing of %s: %s", source.name, described.path.parent, listed(changed))
    return replace(source, config=config, quick_gelu=quick, preprocess=pixels)


def model_type(path: Path) -> str:
    """The kind of model that a transformers configuration describes; "" for none."""
    try:
        tree = _read_json(path)
        return str(tree.get("model_type", "")) if isinstance(tree, dict) else ""
    except (OSError, ValueError, RecursionError):
        return ""


def _read_json(path: Path) -> Any:
    """The content of a small JSON file."""
    if path.stat().st_size > MOST_CONFIG:
        raise UserError(f"it has more than {MOST_CONFIG:,} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _tower(tree: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration states of a tower; an older `*_config_dict` overrides all, with its defaults too."""
    older = tree.get(f"{name}_dict")
    own = tree.get(name) or {}
    return dict(own) if older is None else {**own, **defaults, "hidden_act": QUICK_GELU, **older}


def _from_transformers(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, object]]]:
    """open_clip's configuration of a CLIPModel's, and what it states of the towers."""
    stated = {
        "text_config": _tower(tree, "text_config", TEXT_DEFAULTS),
        "vision_config": _tower(tree, "vision_config", VISION_DEFAULTS),
    }
    usual = tree.get("hidden_act", QUICK_GELU)
    text_act, vision_act = (stated[name].get("hidden_act", usual) for name in ("text_config", "vision_config"))
    if text_act != vision_act:
        raise UserError(f"its towers have different activations, {text_act} (text) and {vision_act} (images)")
    if text_act not in (QUICK_GELU, GELU, *TANH_GELUS):
        raise UserError(f"its activation is {text_act!r}; open_clip has {QUICK_GELU}, {GELU} and {TANH_GELUS[0]}")
    text, vision = {**TEXT_DEFAULTS, **stated["text_config"]}, {**VISION_DEFAULTS, **stated["vision_config"]}
    config: dict[str, Any] = {
        "embed_dim": tree.get("projection_dim", EMBEDDING),
        "quick_gelu": text_act == QUICK_GELU,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_widths(vision, text_act),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **_widths(text, text_act),
        },
    }
    end = text.get("eos_token_id", text["vocab_size"] - 1)
    if end not in (OLD_EOS, text["vocab_size"] - 1):
        config["text_cfg"] |= {"pool_type": "eos", "eos_id": end}
    if text["vocab_size"] != CLIP_VOCABULARY:
        config["text_cfg"]["hf_tokenizer_name"] = TRANSFORMERS_FILE  # the folder's own tokenizer
    stated["embedding"] = {key: tree[key] for key in ("projection_dim",) if key in tree}
    return config, stated


def _widths(tower: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """The settings that open_clip's two towers name alike."""
    own: dict[str, Any] = {"width": tower["hidden_size"], "layers": tower["num_hidden_layers"],
                           "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"]}  # fmt: skip
    if tower["layer_norm_eps"] != TEXT_DEFAULTS["layer_norm_eps"]:
        own["norm_kwargs"] = {"eps": tower["layer_norm_eps"]}
    if activation in TANH_GELUS:
        own["act_kwargs"] = {"approximate": "tanh"}
    return own


def _read_pixels(path: Path) -> dict[str, Any]:
    """open_clip's preprocessing of a `preprocessor_config.json`; empty without one."""
    if not path.is_file():
        return {}
    tree = _read_json(path)
    found = {"mean": tree.get("image_mean"), "std": tree.get("image_std")}
    found["interpolation"] = RESAMPLING.get(tree.get("resample"))
    size = tree.get("size")
    if tree.get("do_center_crop") is False and isinstance(size, dict) and {"height", "width"} <= size.keys():
        found["resize_mode"] = "squash"
    preprocess = {key: value for key, value in found.items() if value is not None}
    check_preprocess(preprocess)
    return preprocess


def _facts(config: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Sizes of an open_clip configuration in transformers' words; towers from other packages have none."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    facts: dict[str, dict[str, object]] = {"embedding": {"projection_dim": config.get("embed_dim")}}
    if "hf_model_name" not in text:
        own = CLIPTextCfg(**text)
        facts["text_config"] = {
            "hidden_size": own.width, "num_hidden_layers": own.layers, "num_attention_heads": own.heads,
            "intermediate_size": round(own.width * own.mlp_ratio), "vocab_size": own.vocab_size,
        }  # fmt: skip
    if "timm_model_name" not in vision:
        image = CLIPVisionCfg(**vision)
        plain = not isinstance(image.layers, list | tuple)
        facts["vision_config"] = {
            "hidden_size": image.width,
            "num_hidden_layers": image.layers if plain else list(image.layers),
            "num_attention_heads": image.width // image.head_width if plain else None,
            "intermediate_size": round(image.width * image.mlp_ratio) if plain else None,
            "patch_size": image.patch_size if plain else None,
        }  # fmt: skip
    return facts


def check_model_config(config: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Refuse (UserError) sizes in open_clip's configuration that no CLIP has, and preprocessing that is none."""
    for part in TOWERS:
        if not isinstance(config[part], dict):
            raise UserError(f"its {part} is no group of settings")
        _check_tower(config[part], part, config.get("embed_dim"))
    check_preprocess(preprocess)


def check_preprocess(preprocess: dict[str, Any]) -> None:
    """Refuse (UserError) means and standard deviations that are none."""
    for key in ("mean", "std"):
        values = preprocess.get(key, [1.0, 1.0, 1.0])
        numbers = isinstance(values, (list, tuple)) and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 for value in values
        )
        if not numbers or len(values) != 3:
            raise UserError(f"{key} should be three numbers, not {values!r:.80}")
        if key == "std" and min(values) <= 0:
            raise UserError(f"std should be above 0, not {values!r:.80}")
        if max(map(abs, values)) > MOST_MEAN:
            raise UserError(
                f"{key} is {values!r:.80}, of pixels from 0 to 255; give it for pixels from 0 to 1 (over 255)"
            )


def _check_tower(tower: dict[str, Any], name: str, embed: object) -> None:
    """Refuse a tower that is vast, from what its numbers amount to."""
    for key, value in tower.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, (int, float)) and not abs(number) <= MOST_WORDS for number in numbers):
            raise UserError(f"its {name}.{key} is {value!r:.80}, more than any CLIP has")
    depth, width = tower.get("layers", 12), _size(tower.get("width", 768))
    layers = sum(map(_size, depth)) if isinstance(depth, list) else _size(depth)
    side = max(map(_size, image if isinstance(image := tower.get("image_size", 224), list) else [image]))
    if layers > MOST_LAYERS or side > MOST_PIXELS:
        raise UserError(f"its {name} has {layers} layers and images of {side} pixels, more than any CLIP has")
    ratio = tower.get("mlp_ratio", 4.0)
    growth = 4 + 2 * (ratio if isinstance(ratio, (int, float)) else 4.0)
    patches = math.ceil(side / max(_size(tower.get("patch_size", 16)), 1)) ** 2
    rows = patches + sum(map(_size, (tower.get("context_length", 0), tower.get("vocab_size", 0), embed)))
    resnet = 8 if isinstance(depth, list) else 1  # the last stage is eight times as wide
    total = layers * growth * (resnet * width) ** 2 + rows * width
    if total > MOST_PARAMETERS:
        raise UserError(f"its {name} would have about {total:,.0f} numbers, more than any CLIP has")


def _size(value: object) -> int:
    """A size as a whole number; 0 for what is none, which building the model refuses."""
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
