"""CoCoOp: a learned context that a small network shifts for each image.

Source: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022 (arXiv 2203.05557), and the
authors' program, whose names the learned parts have: its checkpoints load through `MODEL.INIT_WEIGHTS`.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.losses import image_conditioned_scores
from dassl_clip.clip.prompts import initial_context
from dassl_clip.engine.conditioned import ConditionedTrainer
from dassl_clip.engine.method import at_least
from dassl_clip.engine.unused import words_override

REDUCTION = 16  # of the hidden layer, which is `E // 16` wide


class ConditionalContext(nn.Module):
    """The context of each image: shared vectors plus one shift, which a network of two layers reads from its feature.

    Args:
        context: Initial context, `[M, D]`.
        embed_dim: `E`.
    """

    def __init__(self, context: Tensor, embed_dim: int):
        super().__init__()
        self.ctx = nn.Parameter(context.clone())
        hidden = max(1, embed_dim // REDUCTION)
        layers = [
            ("linear1", nn.Linear(embed_dim, hidden)),
            ("relu", nn.ReLU()),
            ("linear2", nn.Linear(hidden, context.shape[1])),
        ]
        self.meta_net = nn.Sequential(OrderedDict(layers))

    def forward(self, features: Tensor) -> Tensor:
        """The contexts `[B, M, D]` of images with normalised features `[B, E]`."""
        shift: Tensor = self.meta_net(features)  # [B, D]
        return self.ctx + shift[:, None]


@TRAINER_REGISTRY.register()
class CoCoOp(ConditionedTrainer):
    """Cross-entropy on the scores of each image with its own prompts."""

    listed = False
    caches_first_view = True
    settings = {
        "N_CTX": 4,  # context tokens
        "CTX_INIT": "a photo of a",  # words that they start from
    }
    limits = {"N_CTX": at_least(1)}
    overridden = {"N_CTX": ("CTX_INIT", words_override)}

    @property
    def prompt(self) -> str:
        """What the context started from."""
        start = repr(self.node.CTX_INIT) if self.node.CTX_INIT else f"{self.node.N_CTX} random tokens"
        return f"learned from {start}, shifted for each image"

    def build_model(self) -> None:
        """The context, its network, and the tokens of the class names."""
        text = self.backbone.text
        context = initial_context(text, self.node.CTX_INIT, self.node.N_CTX)
        self.classes = text.class_tokens(self.classnames, n_ctx=len(context))
        learner = ConditionalContext(context, self.backbone.embed_dim)
        self.model = self.register_learner("prompt_learner", learner)

    def compared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features `[B, E]` of images, and features `[B, C, E]` of their prompts, from rows `[B, E]`."""
        features = F.normalize(rows.float(), dim=-1)
        contexts = self.model(features)
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(contexts, self.classes)
        return features, text.float()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        views, labels = self.parse_batch_train(batch)
        rows = self.cached_view(batch)
        features, text = self.compared(self.features.encode(views[0]) if rows is None else rows)
        logits = image_conditioned_scores(features, text, self.logit_scale)
        seen = {"images": views[0]} if views else {}
        tensors = {**seen, "image features": features, "text features": text, "logits": logits}
        return self.optimise({"ce": F.cross_entropy(logits, labels)}, {"ce": 1.0}, tensors)
