"""The small CLIP: an open_clip `CLIP` with a four-stage ResNet and a short text transformer.

While it is trained, the image tower ends in a mean over positions and one linear layer. Written out, that is the stock
attention pool with zero queries and keys, identity values and no positions, so that plain open_clip loads the weights.
"""

import gzip
import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
MERGES_NAME = "bpe_merges.txt.gz"
RECORD_NAME = "build.json"
STATE_NAME = "pretrain.pt"  # of an unfinished training
BYTE_TOKENS = 512
SPECIAL_TOKENS = 2


class MeanPool(nn.Module):
    """Mean over positions, then a linear layer: [B, W, H, H] -> [B, E]."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.linear = nn.Linear(width, embed_dim)

    def forward(self, maps: Tensor) -> Tensor:
        return self.linear(maps.mean(dim=(2, 3)))


def count_merges(path: Path) -> int:
    """Merges in a tokenizer file, without its header."""
    return len(gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")) - 1


def model_config(architecture: dict, merges: int) -> dict:
    """The `open_clip_config.json` of the model.

    Args:
        architecture: the recipe's sizes.
        merges: number of byte-pair merges of its tokenizer.
    """
    return {
        "model_cfg": {
            "embed_dim": architecture["embed_dim"],
            "vision_cfg": {
                "image_size": architecture["pixels"],
                "layers": list(architecture["vision_layers"]),
                "width": architecture["vision_width"],
            },
            "text_cfg": {
                "context_length": architecture["context_length"],
                "vocab_size": BYTE_TOKENS + merges + SPECIAL_TOKENS,
                "width": architecture["text_width"],
                "heads": architecture["text_heads"],
                "layers": architecture["text_layers"],
            },
        },
        "preprocess_cfg": {
            "mean": list(architecture["mean"]),
            "std": list(architecture["std"]),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def trainable_model(config: dict) -> CLIP:
    """A fresh model whose attention pool is replaced by `MeanPool`."""
    cfg = config["model_cfg"]
    model = CLIP(**cfg)
    model.visual.attnpool = MeanPool(32 * cfg["vision_cfg"]["width"], cfg["embed_dim"])
    return model


def stock_state(model: CLIP) -> dict[str, Tensor]:
    """The state dict of a trained model in open_clip's own form, float16."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    weight = state.pop("visual.attnpool.linear.weight")
    bias = state.pop("visual.attnpool.linear.bias")
    width, spots = weight.shape[1], (model.visual.image_size // 32) ** 2 + 1
    pool = {
        "positional_embedding": torch.zeros(spots, width),
        "q_proj.weight": torch.zeros(width, width),
        "q_proj.bias": torch.zeros(width),
        "k_proj.weight": torch.zeros(width, width),
        "k_proj.bias": torch.zeros(width),
        "v_proj.weight": torch.eye(width),
        "v_proj.bias": torch.zeros(width),
        "c_proj.weight": weight,
        "c_proj.bias": bias,
    }
    state |= {f"visual.attnpool.{name}": tensor for name, tensor in pool.items()}
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in sorted(state.items())
    }


def write_model(model: CLIP, config: dict, folder: Path) -> None:
    """Write the config and the weights; the tokenizer's file is written by `merges.write_merges`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(stock_state(model), folder / WEIGHTS_NAME, metadata={"format": "pt"})


def read_model(folder: Path) -> tuple[CLIP, SimpleTokenizer, dict]:
    """A written model as plain open_clip builds it, its tokenizer and its config.

    Raises:
        FileNotFoundError: if one of the files is missing.
    """
    from safetensors.torch import load_file

    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME, MERGES_NAME) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; `python -m tools.build_icons` writes them.")
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    model = CLIP(**config["model_cfg"]).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_NAME).items()})
    context = config["model_cfg"]["text_cfg"]["context_length"]
    return model, SimpleTokenizer(bpe_path=str(folder / MERGES_NAME), context_length=context), config
