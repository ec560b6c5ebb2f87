"""The trainers, registered with Dassl by importing this package; `add_config` declares their settings."""

try:
    import dassl  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "dassl_clip needs a Dassl toolbox and none is installed: run `pip install ./toolbox` in the checkout for the "
        "embedded one, or install KaiyangZhou/Dassl.pytorch"
    ) from None

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine import metrics_log as loggers

from .clap.trainer import CLAP
from .coop import CoOp
from .gopro.trainer import GOPro
from .inmap.trainer import InMaP
from .linear_probe import LinearProbe
from .zeroshot import ZeroshotCLIP

__all__ = ["CLAP", "CoOp", "GOPro", "InMaP", "LinearProbe", "ZeroshotCLIP", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add the settings that all trainers share, and those of every registered trainer that declares some."""
    cfg.MODEL.BACKBONE.setdefault("WEIGHTS", "")
    cfg.MODEL.BACKBONE.setdefault("TOKENIZER", "")  # folder with a Hugging Face tokenizer, for towers that need one
    cfg.MODEL.BACKBONE.setdefault("COMPILE", False)  # torch.compile of the frozen image tower
    cfg.DATALOADER.setdefault("ON_BAD_IMAGE", "error")  # or skip: leave out, and list, what cannot be decoded
    cfg.TRAIN.setdefault("CHECKPOINT_STEPS", 0)  # also save every so many steps inside an epoch
    loggers.add_config(cfg)
    for name in TRAINER_REGISTRY.registered_names():
        declare = getattr(TRAINER_REGISTRY.get(name), "add_config", None)
        if declare is not None:
            declare(cfg)
