"""Methods that learn CLIP's towers whole: a copy of the image tower, its head, its input and its precision.

Weights, gradients, the optimiser and averages are float32; under `PREC amp` towers run in half precision by autocast.

Shapes: `B` images, `C` classes, `E` features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dassl_clip.clip.fine_tuned import IMAGENET, Pixels, checkpoint_activations, copied_tower
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.weights import hash_state

from .features import Encoding
from .method import one_of
from .step_trainer import StepTrainer
from .styles import class_texts


class FineTuningTrainer(StepTrainer):
    """A method whose `model` has `encode`, images to features `[B, E]`, and `head`, these to logits `[B, C]`.

    Attributes:
        text: The text features of the classes, `[C, E]`, of length 1, of the frozen text tower.
    """

    settings = {
        **StepTrainer.settings,
        "TEMPLATES": "single",
        "GRADIENT_CHECKPOINTING": False,  # activations of blocks are computed again in the backward pass
        "INPUT_STATISTICS": "clip",  # or imagenet: mean and deviation that images are normalised by
    }
    limits = {**StepTrainer.limits, "INPUT_STATISTICS": one_of(("clip", "imagenet"))}
    image_features_change = True
    _name: str | None = None

    def build_model(self) -> None:
        """Also the text features of the classes."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        self.text = self.text_features()
        super().build_model()

    def image_tower(self) -> nn.Module:
        """The tower that is learned: a copy of CLIP's own."""
        tower = copied_tower(self.backbone.model)
        if self.node.GRADIENT_CHECKPOINTING:
            checkpoint_activations(tower, self.backbone.name)
        return tower

    def text_features(self) -> Tensor:
        """The text features of the classes, `[C, E]`, of length 1, of the frozen text tower."""
        return class_texts(self)

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]`, float32, not normalised, of images `[B, 3, H, W]`, with gradients to the tower."""
        with self.precision.autocast():
            features: Tensor = self.model.encode(images)
        return features.float()

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and deviation that the tower's images are normalised by."""
        if self.node.INPUT_STATISTICS == "imagenet":
            return IMAGENET
        return self.backbone.pixel_mean, self.backbone.pixel_std

    @property
    def pixel_change(self) -> Pixels | None:
        """The statistics of images as they arrive, and those that the tower is to get; None for the same."""
        own = self.backbone.pixel_mean, self.backbone.pixel_std
        return None if self.pixels == own else (own, self.pixels)

    @property
    def encoding(self) -> Encoding:
        """Features `[B, E]` of the learned tower, cached under the hash of what was learned."""
        if getattr(self, "model", None) is None:  # asked for before it is built
            return Encoding("image features of a learned tower", self.backbone.embed_dim, self._encode)
        if self._name is None:
            self._name = f"{hash_state(self.model.state_dict())} {self.node.INPUT_STATISTICS}"
        return Encoding(f"image features of a learned tower {self._name}", self.backbone.embed_dim, self._encode)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`, without gradients."""
        self.set_model_mode("eval")
        return self.encode(images)

    def model_logits(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]`, of the weights in place."""
        return self.feature_logits(self._encode(images))

    def before_test(self) -> None:
        """What was learned may be another than before."""
        self.weights_changed()

    def weights_changed(self) -> None:
        """The name of the features is no longer that of the weights."""
        self._name = None

    def record_facts(self) -> dict[str, Any]:
        """The input is that of the learned tower."""
        facts = super().record_facts()
        facts["input"] = facts["input"] | dict(zip(("PIXEL_MEAN", "PIXEL_STD"), map(list, self.pixels)))
        return facts

    def class_proxies(self) -> Tensor:
        """The weights of the head, `[C, E]`."""
        weight: Tensor = self.model.weight
        return weight.detach()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` of the learned tower."""
        logits: Tensor = self.model.head(features.float())
        return logits
