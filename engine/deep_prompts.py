"""Methods that learn prompts inside both towers: how they encode, score and are refined.

Both towers are frozen, but the image tower reads learned tokens, so image features change with every step: those of a
trained run are cached under the hash of what it learned, and no classifier serves CLIP's own features.

Shapes: `B` images, `C` classes, `M` context tokens, `D` text width, `W` vision width, `E` joint embedding.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.clip.prompts import CONTEXT_STD, initial_context, initial_words
from dassl_clip.clip.weights import hash_state
from dassl_clip.results.errors import UserError

from .features import Encoding
from .trainer import CLIPTrainer


class DeepPrompts(Protocol):
    """What the learned parts of such a method give to the towers."""

    def for_text(self) -> tuple[Tensor, Tensor | None]:
        """The context `[M, D]`, and the deep prompts `[K, M, D]` of layers 1 to `K` or None."""

    def for_vision(self) -> Sequence[Tensor]:
        """The tokens of the first blocks of the image tower, each `[M, W]`."""


def random_prompts(count: int, tokens: int, width: int) -> nn.ParameterList:
    """`count` prompts of `tokens` vectors each, drawn from N(0, 0.02)."""
    return nn.ParameterList([nn.Parameter(torch.randn(tokens, width) * CONTEXT_STD) for _ in range(count)])


class DeepPromptTrainer(CLIPTrainer):
    """A method with prompts inside both towers; a subclass registers its `DeepPrompts` as `model`.

    Attributes:
        fixed: `[F, D]`, embeddings of the initial words that are not learned; they follow the context.
    """

    model: Any

    @property
    def prompts_image(self) -> bool:
        """Whether the image tower reads learned tokens, by the settings; else its features are CLIP's own."""
        raise NotImplementedError(f"{type(self).__name__} does not say whether its image tower reads learned tokens")

    @property
    def image_features_change(self) -> bool:  # type: ignore[override]
        """Whether they do."""
        return self.prompts_image

    def start_context(self, n_ctx: int, depths: Sequence[int]) -> Tensor:
        """The context to start from, `[M, D]`; what must fit is checked, and the tokens of the class names are read.

        The first `M` tokens of `CTX_INIT` are learned, and the rest of them stand fixed before the class names.

        Args:
            n_ctx: `M`.
            depths: Number of layers with learned tokens, in the text tower and in the image tower; 0 there for none.

        Raises:
            UserError: The words have fewer tokens, or a tower has fewer layers.
        """
        text, words = self.backbone.text, initial_words(self.node.CTX_INIT)
        layers = text.layers, len(self.backbone.vision_widths) if self.prompts_image else 0
        for name, least, depth, most in zip(("text", "image"), (1, 0), depths, layers):
            if not least <= depth <= most:
                told = f"the {name} tower has {most} layers, so a prompt depth is {least} to {most}, got {depth}"
                raise UserError(told)
        context = initial_context(text, words, n_ctx)
        if not 1 <= n_ctx <= len(context):
            raise UserError(
                f"{n_ctx} context tokens are to start from CTX_INIT {words!r}, which has {len(context)}: give as many, "
                "other words, or an empty CTX_INIT for a random start"
            )
        self.fixed = context[n_ctx:].to(self.device)
        self.classes = text.class_tokens(self.classnames, n_ctx=len(context))
        return context[:n_ctx]

    def class_proxies(self) -> Tensor:
        """The classifier of the current prompts, `[C, E]`, normalised."""
        context, deep = self.model.for_text()
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(torch.cat([context, self.fixed]), self.classes, deep=deep)
        return F.normalize(text.float(), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Normalised features `[B, E]` of images `[B, 3, H, W]` beside the learned tokens, with gradients to these."""
        with self.precision.autocast():
            features: Tensor = self.backbone.embed_image(images, prompts=self.model.for_vision())
        return features

    @property
    def encoding(self) -> Encoding:
        """Features `[E]` beside the learned tokens, cached by what was learned; CLIP's own where there are none."""
        if not self.prompts_image:
            return super().encoding
        model = getattr(self, "model", None)  # asked for before it is there
        learned = "" if model is None else f" {hash_state(model.state_dict())}"
        return Encoding(f"image features beside learned tokens{learned}", self.backbone.embed_dim, self._encode)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`."""
        return self.image_features(images)

    def before_test(self) -> None:
        """All images share the classifier."""
        self.classifier = self.class_proxies()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` beside the learned tokens."""
        return self.cosine_logits(features, self.classifier)
