"""open_clip's models from their configurations, and the activation that their weights were trained with."""

from copy import deepcopy

import open_clip
import torch
from torch import nn

from dassl_clip.results.errors import UserError

from .sources import HF_EXTRA, Source


def build_model(source: Source, dtype: torch.dtype) -> nn.Module:
    """open_clip's model of a source, with new weights; norms stay in float32 when `dtype` is a half one."""
    config = deepcopy(source.config)
    config["quick_gelu"] = source.quick_gelu
    custom_text = config.pop("custom_text", False)
    foreign_image, foreign_text = "timm_model_name" in config["vision_cfg"], "hf_model_name" in config["text_cfg"]
    if foreign_image:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if foreign_text:
        config["text_cfg"]["hf_model_pretrained"] = False
        config["text_cfg"]["hf_model_name"] = source.text_model()
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    else:
        kind = open_clip.CustomTextCLIP if custom_text or foreign_text else open_clip.CLIP
    half = dtype != torch.float32
    model: nn.Module
    try:
        model = kind(**config, cast_dtype=dtype if half else None)
    except Exception as error:  # a configuration that fits no model makes its parts raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if foreign_text:
            reason += (
                f". Its text tower is transformers' {source.config['text_cfg']['hf_model_name']}: it needs {HF_EXTRA}, "
                "and that model's config.json in a cache or in the folder MODEL.BACKBONE.TOKENIZER"
            )
        raise UserError(
            f"open_clip {open_clip.__version__} cannot build {source.name} from its configuration: {reason}"
        ) from error
    if half and foreign_image:
        model.to(dtype)
        for module in model.modules():
            if isinstance(module, open_clip.transformer.LayerNormFp32):
                module.float()
    elif half:
        open_clip.convert_weights_to_lp(model, dtype=dtype)
    return model.eval()


def require_activation(model: nn.Module, source: Source) -> None:
    """Make sure that every MLP of open_clip's own towers has the activation that the weights were trained with."""
    wanted = open_clip.transformer.QuickGELU if source.quick_gelu else nn.GELU
    for name, block in model.named_modules():
        activation = getattr(getattr(block, "mlp", None), "gelu", None)
        if activation is not None and not isinstance(activation, wanted):
            raise RuntimeError(
                f"{source.name}: {name} has the activation {type(activation).__name__}, but its weights need "
                f"{wanted.__name__}; this open_clip ({open_clip.__version__}) builds another model than was asked for"
            )
