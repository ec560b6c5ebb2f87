"""Zero-shot CLIP without the directions of style words: a baseline that trains nothing and reads no image.

The mean difference between a style word's prompts and the plain ones is a direction for each style word; their span is
projected out of the class features and of the image features. The latter divides all scores of an image by one length,
so it changes no prediction, and the classifier stays a linear one. It stands beside CLAP, whose head is trained for
the same end (Cai et al., ECCV 2024).
"""

import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.styles import style_basis, style_directions, styled_texts, without_styles
from dassl_clip.engine.styles import style_words
from dassl_clip.results.labels import display_name

from .zeroshot import ZeroshotCLIP

PLAIN = "a photo of a {}."  # the prompt that style words are compared with


@TRAINER_REGISTRY.register()
class StyleProjection(ZeroshotCLIP):
    """Cosines of image features with class features, without what `DATASET.STYLES` add to a text."""

    repairs = "style words in class names"
    is_reference = False
    extra_tests = ("forms", "probe", "attacks")

    def build_model(self) -> None:
        """The directions `[E, R]`, and the classifier `[C, E]` without them."""
        super().build_model()
        names, words = [display_name(name) for name in self.classnames], style_words(self)
        plain = F.normalize(self.features.texts([PLAIN.replace("{}", name) for name in names]), dim=-1)
        texts = styled_texts(names, words, self.cfg.DATASET.STYLE_TEMPLATE)
        styled = F.normalize(self.features.texts(texts), dim=-1).unflatten(0, (len(words), -1))
        self.basis = style_basis(style_directions(styled, plain))
        self.proxies = F.normalize(self.content(self.proxies.float()), dim=-1)

    def content(self, features: Tensor) -> Tensor:
        """Features `[..., E]` without the directions."""
        return without_styles(features.float(), self.basis)
