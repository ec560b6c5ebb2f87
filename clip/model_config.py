"""Checks of a model's configuration before anything is built from it: whatever a folder says, no vast model is made."""

import math
from typing import Any

from dassl_clip.results.errors import UserError

TOWERS = ("vision_cfg", "text_cfg")
MOST_LAYERS, MOST_PARAMETERS = 1000, 5_000_000_000  # of a tower; the largest of open_clip's has 3.8 billion
MOST_PIXELS = 4096  # along a side
MOST_WORDS = 2_000_000
PIXELS = ("mean", "std")


def check_model_config(config: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Refuse sizes that no CLIP has, and preprocessing that is none.

    Args:
        config: open_clip's model configuration.
        preprocess: What its preprocessing has other than the standard.

    Raises:
        UserError: One sentence on what does not fit.
    """
    for part in TOWERS:
        if not isinstance(config[part], dict):
            raise UserError(f"its {part} is no group of settings")
        _check_tower(config[part], part, config.get("embed_dim"))
    check_preprocess(preprocess)


def check_preprocess(preprocess: dict[str, Any]) -> None:
    """Refuse means and standard deviations that are none.

    Raises:
        UserError: One sentence on what does not fit.
    """
    for key in PIXELS:
        values = preprocess.get(key, [1.0, 1.0, 1.0])
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_plain, values)):
            raise UserError(f"{key} should be three numbers, not {values!r:.80}")
        if key == "std" and min(values) <= 0:
            raise UserError(f"std should be above 0, not {values!r:.80}")


def _is_plain(value: object) -> bool:
    """Whether a value is a number of a usual size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


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
    positions = math.ceil(side / max(_size(tower.get("patch_size", 16)), 1)) ** 2 + _size(
        tower.get("context_length", 0)
    )
    rows = positions + _size(tower.get("vocab_size", 0)) + _size(embed)
    resnet = 8 if isinstance(depth, list) else 1  # the last stage is eight times as wide
    total = layers * growth * (resnet * width) ** 2 + rows * width
    if total > MOST_PARAMETERS:
        raise UserError(f"its {name} would have about {total:,.0f} numbers, more than any CLIP has")


def _size(value: object) -> int:
    """A size as a whole number; 0 for what is none, which building the model refuses."""
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
