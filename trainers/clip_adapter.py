"""CLIP-Adapter: a small bottleneck on image features, blended with them.

Source: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2023, arXiv 2110.04544,
and the authors' program. Of a feature `f` as the tower gives it, not normalised,

    f' = RATIO relu(W2 relu(W1 f)) + (1 - RATIO) f

is compared with the text features of the classes. The names `clip_adapter` and `fc` are those of the authors'
checkpoints, which load as they are. What is learned has no part for a class, so it fits other classes too.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine.method import at_least
from dassl_clip.engine.styles import class_texts
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.results.errors import UserError


class Adapter(nn.Module):
    """Two linear layers without biases, each followed by a ReLU.

    Args:
        width: `E`.
        ratio: Share of their output in the adapted features.
        reduction: `E` over the width between the layers.
    """

    def __init__(self, width: int, ratio: float = 0.2, reduction: int = 4):
        super().__init__()
        self.ratio = ratio
        inner = width // reduction
        layers = nn.Linear(width, inner, bias=False), nn.ReLU(), nn.Linear(inner, width, bias=False), nn.ReLU()
        self.fc = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Adapted features `[B, E]` of features `[B, E]`, neither normalised."""
        return self.ratio * self.fc(features) + (1 - self.ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(CLIPTrainer):
    """Cross-entropy on the scores of adapted image features."""

    settings = {"TEMPLATES": "coop", "RATIO": 0.2, "REDUCTION": 4}
    limits = {
        "RATIO": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
        "REDUCTION": at_least(1),
    }
    caches_first_view = True
    listed = False

    def build_model(self) -> None:
        """The adapter, and the text classifier."""
        node = self.node
        self.templates = resolve_templates(node.TEMPLATES, self.cfg.DATASET.NAME)
        self.text = class_texts(self)
        if self.backbone.embed_dim < node.REDUCTION:
            raise UserError(
                f"TRAINER.CLIPADAPTER.REDUCTION is {node.REDUCTION}, more than the {self.backbone.embed_dim} numbers "
                "of a feature; take a smaller one"
            )
        adapter = Adapter(self.backbone.embed_dim, node.RATIO, node.REDUCTION)
        self.model = self.register_learner("clip_adapter", adapter)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        views, labels = self.parse_batch_train(batch)
        rows = self.cached_view(batch)
        features = self.features.encode(views[0]) if rows is None else rows
        adapted = self.model(features)
        logits = self.cosine_logits(adapted, self.text)
        terms = {"ce": F.cross_entropy(logits, labels)}
        tensors = {"image features": features, "adapted features": adapted, "logits": logits}
        return self.optimise(terms, {"ce": 1.0}, tensors)

    def content(self, features: Tensor) -> Tensor:
        """Adapted features `[B, E]` of image features `[B, E]` as the tower gives them."""
        return self.model(features.float())

    def class_proxies(self) -> Tensor:
        """The text classifier, `[C, E]`."""
        return self.text

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` as the tower gives them."""
        return self.cosine_logits(self.content(features), self.text)
