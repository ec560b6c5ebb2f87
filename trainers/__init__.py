"""The trainers, registered with Dassl by importing this package."""

try:
    import dassl  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "dassl_clip needs a Dassl toolbox and none is installed: run `pip install ./toolbox` in the checkout for the "
        "embedded one, or install KaiyangZhou/Dassl.pytorch"
    ) from None

from .clap.trainer import CLAP
from .clip_adapter import CLIPAdapter
from .clip_lora import CLIPLoRA
from .clipood import CLIPood
from .cocoop import CoCoOp
from .coop import CoOp
from .erm import ERM
from .flyp import FLYP
from .gopro.trainer import GOPro
from .inmap.trainer import InMaP
from .iota import IOTA
from .kgcoop import KgCoOp
from .linear_probe import LinearProbe
from .linear_probe_p2 import LinearProbeP2
from .maple import MaPLe
from .miro import MIRO
from .onzeta import OnZeta
from .prograd import ProGrad
from .prolip import ProLIP
from .promptsrc import PromptSRC
from .stata import StatA
from .style_projection import StyleProjection
from .swad import SWAD
from .taskres import TaskRes
from .tda import TDA
from .tip_adapter import TipAdapter, TipAdapterF
from .transclip import TransCLIP
from .wise_ft import WiSEFT
from .zeroshot import ZeroshotCLIP
from .zlap import ZLaP

__all__ = [
    "CLAP",
    "CLIPAdapter",
    "CLIPLoRA",
    "FLYP",
    "CLIPood",
    "ERM",
    "IOTA",
    "TDA",
    "CoCoOp",
    "CoOp",
    "GOPro",
    "InMaP",
    "KgCoOp",
    "LinearProbe",
    "MIRO",
    "MaPLe",
    "SWAD",
    "WiSEFT",
    "OnZeta",
    "ProGrad",
    "PromptSRC",
    "LinearProbeP2",
    "ProLIP",
    "StatA",
    "StyleProjection",
    "TaskRes",
    "TipAdapter",
    "TipAdapterF",
    "TransCLIP",
    "ZLaP",
    "ZeroshotCLIP",
]
