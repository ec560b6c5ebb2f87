"""ProGrad: CoOp whose steps do not go against what the hand-written prompt says.

Source: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (arXiv 2205.14865), and the authors' program.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.prompts import ContextLearner, initial_context
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.engine import distributed
from dassl_clip.engine.method import ABOVE_ZERO, at_least
from dassl_clip.engine.unused import Overridden
from dassl_clip.results.errors import UserError

from .kgcoop import KgCoOp


def words_at_the_end(text: TextTower, words: str, n_ctx: int) -> Tensor:
    """A context `[M, D]` that ends with the embeddings of words, and is zero before them.

    Raises:
        UserError: The words have more than `n_ctx` tokens, or none.
    """
    own = initial_context(text, words, 0)
    if len(own) > n_ctx:
        raise UserError(f"the words {words!r} have {len(own)} tokens, and the context has {n_ctx}; raise N_CTX")
    return torch.cat([torch.zeros(n_ctx - len(own), text.width), own])


def divergence(logits: Tensor, hand_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 mean_b(-sum_c softmax(z0 / T) log_softmax(z / T))`, a scalar, of logits `z` and `z0` `[B, C]` each."""
    shares = (hand_logits / temperature).softmax(dim=-1)
    return temperature**2 * -(shares * (logits / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()


def conflict_weight(gradient: Tensor, other: Tensor, strength: float) -> float:
    """The weight `w` for which `gradient + w other` is what ProGrad steps along.

    Args:
        gradient: Of the cross-entropy, any shape.
        other: Of the divergence, of the same shape.
        strength: Share of the part of `gradient` against `other` that is taken off.

    Returns:
        `-strength (gradient . other) / |other|^2` where the two point against each other, else 0.
    """
    product, length = float((gradient * other).sum()), float(other.square().sum())
    return -strength * product / length if product < 0 else 0.0


@TRAINER_REGISTRY.register()
class ProGrad(KgCoOp):
    """Cross-entropy, without the part of its gradient that goes against the hand-written prompt's scores."""

    settings = {
        "N_CTX": 16,  # context tokens; zero but for the last ones
        "CTX_INIT": "",  # words of the last ones; empty: those before the class name in TEMPLATES
        "TEMPLATES": "coop",  # whose scores the steps do not go against: a named set, or templates with `{}`
        "LAMBDA": 1.0,  # share of the part against it that is taken off
        "TEMPERATURE": 1.0,
        "CLASS_TOKEN_POSITION": "end",
    }
    limits = KgCoOp.limits | {
        "LAMBDA": at_least(0),
        "TEMPERATURE": ABOVE_ZERO,
    }
    overridden: Overridden = {}
    class_specific = False

    @property
    def words(self) -> str:
        """What the last rows of the context start from."""
        return self.node.CTX_INIT or self.templates[0].partition("{}")[0].strip()

    @property
    def prompt(self) -> str:
        """What the context started from, and what it does not go against."""
        return f"learned from {self.words!r} in {self.node.N_CTX} tokens, not against {' | '.join(self.templates)}"

    def build_model(self) -> None:
        """The context and the tokens of the class names."""
        text, tokens = self.backbone.text, self.node.N_CTX
        learner = ContextLearner(text, "", tokens, self.num_classes, class_specific=False)
        learner.ctx.data = words_at_the_end(text, self.words, tokens)
        self.classes = text.class_tokens(self.classnames, n_ctx=tokens)
        self.model = self.register_learner("prompt_learner", learner)

    def loss_terms(
        self, features: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """Cross-entropy, and the divergence with a weight that takes off what goes against it."""
        text = self.class_proxies()
        logits, hand = self.logit_scale * features @ text.T, self.logit_scale * features @ self.hand_features.T
        terms = {"ce": F.cross_entropy(logits, labels), "divergence": divergence(logits, hand, self.node.TEMPERATURE)}
        pair = torch.stack([torch.autograd.grad(term, self.model.ctx, retain_graph=True)[0] for term in terms.values()])
        rows = pair.new_tensor(len(labels))  # with several processes, the gradients are those of the whole batch
        gradient, other = distributed.total(pair * rows) / distributed.total(rows)
        weights = {"ce": 1.0, "divergence": conflict_weight(gradient, other, self.node.LAMBDA)}
        return terms, weights, {"text features": text, "logits": logits}
