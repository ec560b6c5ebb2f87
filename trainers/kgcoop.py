"""KgCoOp: CoOp whose text features stay near those of a hand-written prompt.

Source: Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023 (arXiv
2303.13283), and the authors' program, whose distance is `1 - mean cosine`: half of the paper's squared distance. Not
taken over from it: parts that are saved and never trained, and words of the context that no setting changes.
"""

from functools import cached_property

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine.method import at_least
from dassl_clip.engine.styles import class_texts

from .coop import CoOp


def cosine_distance(text: Tensor, hand: Tensor) -> Tensor:
    """`1 - mean_c cos(text_c, hand_c)`, a scalar, of normalised features `[C, E]` each."""
    return 1 - (text * hand).sum(dim=-1).mean()


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Cross-entropy as in CoOp, plus the distance of the class features from those of `TEMPLATES`."""

    listed = False
    settings = CoOp.settings | {
        "N_CTX": 4,
        "CTX_INIT": "a photo of a",
        "TEMPLATES": "coop",  # what the features stay near to: a named set, or templates with `{}`
        "DISTANCE_WEIGHT": 8.0,
    }
    limits = CoOp.limits | {"DISTANCE_WEIGHT": at_least(0)}

    @property
    def prompt(self) -> str:
        """What the context started from, and what it stays near to."""
        return f"{super().prompt}, near {' | '.join(self.templates)}"

    @property
    def templates(self) -> list[str]:
        """The hand-written prompts."""
        return resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)

    @cached_property
    def hand_features(self) -> Tensor:
        """The frozen text features of the hand-written prompts, `[C, E]`, normalised; made for the first step."""
        return class_texts(self)

    def loss_terms(
        self, features: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """CoOp's term, and the distance."""
        terms, weights, tensors = super().loss_terms(features, labels)
        terms["distance"] = cosine_distance(tensors["text features"], self.hand_features)
        return terms, weights | {"distance": self.node.DISTANCE_WEIGHT}, tensors
