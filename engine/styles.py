"""The styles of a run's data set: their words, and the own style of each class where the classes are tied to styles."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dassl_clip.clip.styles import OWN_STYLES_FILE, read_own_styles
from dassl_clip.clip.templates import OWN
from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .fingerprint import LOCAL_FOLDER

if TYPE_CHECKING:
    from .trainer import CLIPTrainer


def style_words(trainer: CLIPTrainer) -> list[str]:
    """`DATASET.STYLES`, or the names of the data set's domains; empty where neither is known."""
    words = [*trainer.cfg.DATASET.STYLES] or [*getattr(trainer.dm.dataset, "domains", ())]
    return [display_name(word) for word in words]


def model_own_styles(trainer: CLIPTrainer) -> list[str] | None:
    """The own style of each class in the model's pre-training, or None where nothing says it.

    From the file `DATASET.OWN_STYLES`, else from `own_styles.json` beside the weights, where it has all classes.

    Raises:
        UserError: the named file is missing, malformed, or lacks classes.
    """
    named, backbone = trainer.cfg.DATASET.OWN_STYLES, trainer.cfg.MODEL.BACKBONE.NAME
    if named:
        return read_own_styles(Path(named).expanduser(), trainer.classnames)
    if backbone.startswith(LOCAL_FOLDER):
        file = Path(backbone.removeprefix(LOCAL_FOLDER)).expanduser() / OWN_STYLES_FILE
        if file.is_file():
            with contextlib.suppress(UserError):  # of other classes
                return read_own_styles(file, trainer.classnames)
    return None


def own_styles(trainer: CLIPTrainer) -> list[str] | None:
    """The own style of each class for templates with `{own}`: the model's, else those that come with the data set.

    Raises:
        UserError: as `model_own_styles`.
    """
    styles, file = model_own_styles(trainer), getattr(trainer.dm.dataset, "own_styles_file", None)
    return styles if styles or file is None else read_own_styles(file, trainer.classnames)


def class_texts(trainer: CLIPTrainer) -> Tensor:
    """The text features of the classes in the run's templates, `[C, E]`, float32, of length 1.

    Raises:
        UserError: as `own_styles`, or a template asks for own styles that nothing says.
    """
    with trainer.precision.autocast():
        own = own_styles(trainer) if any(OWN in template for template in trainer.templates) else None
        return zeroshot_weights(trainer.backbone.text, trainer.classnames, trainer.templates, own_styles=own).T.float()
