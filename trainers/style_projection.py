"""Zero-shot CLIP without the directions of style words: a baseline that trains nothing and reads no image.

The mean difference between a style word's prompts and the plain ones is a direction for each style word; their span is
projected out of the class features and of the image features. The latter divides all scores of an image by one length,
so it changes no prediction, and the classifier stays a linear one. It stands beside CLAP, whose head is trained for
the same end (Cai et al., ECCV 2024).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.styles import style_basis, style_directions, styled_texts, without_styles
from dassl_clip.engine.styles import style_words
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .zeroshot import ZeroshotCLIP

PLAIN = "a photo of a {}."  # the prompt that style words are compared with


class Projection(nn.Module):
    """`x -> x @ weight` with a symmetric projector `[E, E]`, which a checkpoint holds."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[..., E]` without the style directions, not normalised."""
        return features.float() @ self.weight


@TRAINER_REGISTRY.register()
class StyleProjection(ZeroshotCLIP):
    """Cosines of image features with class features, without what `DATASET.STYLES` add to a text."""

    repairs = "style words in class names"
    is_reference = False
    extra_tests = ("forms", "probe", "attacks")

    def build_model(self) -> None:
        """The plain classifier `[C, E]`, and the projector `[E, E]`."""
        super().build_model()
        self.model = self.register_learner("projection", Projection(self._projector()))

    def _projector(self) -> Tensor:
        """The projector; NaN where a run is opened without its data, whose checkpoint has it."""
        width = self.backbone.embed_dim
        words = style_words(self)
        if not words:
            return torch.full((width, width), math.nan)
        names = [display_name(name) for name in self.classnames]
        plain = F.normalize(self.features.texts([PLAIN.replace("{}", name) for name in names]), dim=-1)
        texts = styled_texts(names, words, self.cfg.DATASET.STYLE_TEMPLATE)
        styled = F.normalize(self.features.texts(texts), dim=-1).unflatten(0, (len(words), -1))
        basis = style_basis(style_directions(styled, plain).double())
        return without_styles(torch.eye(width, dtype=torch.float64, device=basis.device), basis).float()

    def before_test(self) -> None:
        """The classifier, once for all images.

        Raises:
            UserError: there are no style words, and no checkpoint was loaded.
        """
        if self.model.weight.isnan().any():
            raise UserError(
                f"{self.cfg.DATASET.NAME} has no domains to take style words from; name some, such as "
                "DATASET.STYLES \"['photo','sketch']\""
            )
        self.classifier = self.class_proxies()

    def content(self, features: Tensor) -> Tensor:
        """Features `[..., E]` without the directions."""
        return self.model(features)

    def class_proxies(self) -> Tensor:
        """The classifier, `[C, E]`."""
        return F.normalize(self.content(self.proxies), dim=-1)

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(features, self.classifier)

    def record_facts(self) -> dict[str, Any]:
        """Nothing is selected, since nothing is trained."""
        return super().record_facts() | {"selection_rule": "none"}
