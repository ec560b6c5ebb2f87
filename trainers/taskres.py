"""TaskRes: a learned residual beside the text feature of each class.

Source: Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv 2211.10277, and the authors'
program. Class features are `base + ALPHA x`, normalised in the score; `base [C, E]` is the mean of the text features
over the templates as the tower gives them, not normalised, and `x [C, E]`, zero at first, is what is learned.

The names `prompt_learner`, `text_feature_residuals` and `base_text_features` are those of the authors' checkpoints,
which load as they are; the base comes from the file then, since it may be an enhanced one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import fill_template, resolve_templates
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.engine.method import ABOVE_ZERO
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.results.labels import display_name


@torch.no_grad()
def mean_text_features(text: TextTower, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Means over the templates of text features that are not normalised, `[C, E]`, float32."""
    texts = [fill_template(template, display_name(name)) for template in templates for name in classnames]
    return text.encode(texts).unflatten(0, (len(templates), len(classnames))).mean(dim=0).float()


class TaskResidual(nn.Module):
    """Class features with a learned part.

    Args:
        base: `[C, E]`; it is saved with the residual.
        alpha: Factor on the residual.
    """

    base_text_features: Tensor

    def __init__(self, base: Tensor, alpha: float):
        super().__init__()
        self.alpha = alpha
        self.register_buffer("base_text_features", base.clone())
        self.text_feature_residuals = nn.Parameter(torch.zeros_like(base))

    def forward(self) -> Tensor:
        """Class features `[C, E]`, not normalised."""
        return self.base_text_features + self.alpha * self.text_feature_residuals


@TRAINER_REGISTRY.register()
class TaskRes(CLIPTrainer):
    """Cross-entropy on the scores of class features with a residual."""

    settings = {"TEMPLATES": "coop", "ALPHA": 0.5}
    limits = {"ALPHA": ABOVE_ZERO}
    class_specific = True
    caches_first_view = True
    listed = False

    def build_model(self) -> None:
        """The residual on the text features."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        with self.precision.autocast():
            base = mean_text_features(self.backbone.text, self.classnames, self.templates)
        self.model = self.register_learner("prompt_learner", TaskResidual(base, self.node.ALPHA))

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        views, labels = self.parse_batch_train(batch)
        rows = self.cached_view(batch)
        features = self.features.encode(views[0]) if rows is None else rows
        logits = self.cosine_logits(features, self.model())
        terms = {"ce": F.cross_entropy(logits, labels)}
        return self.optimise(terms, {"ce": 1.0}, {"image features": features, "logits": logits})

    def class_proxies(self) -> Tensor:
        """The class features, `[C, E]`."""
        return self.model().detach()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(features, self.class_proxies())
