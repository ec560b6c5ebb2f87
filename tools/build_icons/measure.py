"""Zero-shot accuracy of a written model on the embedded data set, per domain and prompt."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .selection import DOMAINS

PROMPTS = ("a photo of a {}.", "{}", "a {}.", "a drawing of a {}.", "an icon of a {}.", "a photo of the {}.")


def pixels_of(pictures: np.ndarray, config: dict) -> Tensor:
    """Normalised model input [N, 3, H, H] of uint8 pictures [N, P, P, 3]."""
    side = config["model_cfg"]["vision_cfg"]["image_size"]
    images = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != side:
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(config["preprocess_cfg"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (images - mean) / std


@torch.no_grad()
def image_features(model: CLIP, images: Tensor, batch: int = 256) -> Tensor:
    """Normalised image features [N, E]."""
    return F.normalize(torch.cat([model.encode_image(part) for part in images.split(batch)]).float(), dim=-1)


@torch.no_grad()
def class_features(model: CLIP, tokenizer: SimpleTokenizer, classes: Sequence[str], prompt: str) -> Tensor:
    """Normalised text features [C, E] of the classes in one prompt."""
    return F.normalize(model.encode_text(tokenizer([prompt.format(name) for name in classes])).float(), dim=-1)


def zero_shot(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    features: Tensor,
    labels: Sequence[int],
    domains: Sequence[str],
    classes: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
) -> dict[str, dict[str, float]]:
    """Accuracy in percent, by prompt and domain, and the mean over domains.

    Args:
        model: with its text tower.
        tokenizer: of the model.
        features: `image_features` of the pictures, [N, E].
        labels: N positions in `classes`.
        domains: N domain names; each domain must occur.
        classes: class names.
        prompts: texts with a place for the class name.
    """
    truth, place = torch.tensor(labels), np.array(domains)
    table = {}
    for prompt in prompts:
        right = (features @ class_features(model, tokenizer, classes, prompt).T).argmax(dim=1) == truth
        row = {name: 100 * right[torch.from_numpy(place == name)].float().mean().item() for name in DOMAINS}
        table[prompt] = row | {"mean": sum(row.values()) / len(row)}
    return table
