"""CoOp: learn the context of one prompt for all classes, or of one for each class.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022. The name `prompt_learner` and its
parameter `ctx` are those of the authors' checkpoints, which load through `MODEL.INIT_WEIGHTS` and `--model-dir`.
"""

import logging

import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.prompts import ContextLearner, initial_words
from dassl_clip.engine.method import at_least, one_of
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.unused import words_override

logger = logging.getLogger(__name__)

POSITIONS = ("end", "middle", "front")


@TRAINER_REGISTRY.register()
class CoOp(CLIPTrainer):
    """Cross-entropy on the scores of prompts with a learned context."""

    caches_first_view = True
    settings = {
        "N_CTX": 16,  # context tokens
        "CTX_INIT": "",  # words to start from, in place of random tokens
        "CSC": False,  # a context for each class; of tokens alone
        "CLASS_TOKEN_POSITION": "end",
    }
    limits = {"CLASS_TOKEN_POSITION": one_of(POSITIONS), "N_CTX": at_least(1)}
    overridden = {"N_CTX": ("CTX_INIT", words_override)}

    @property
    def class_specific(self) -> bool:
        """Whether every class has a context of its own."""
        return self.node.CSC and not initial_words(self.node.CTX_INIT)

    @property
    def prompt(self) -> str:
        """What the context started from."""
        start = repr(self.node.CTX_INIT) if self.node.CTX_INIT else f"{self.node.N_CTX} random tokens"
        return f"learned from {start}, class token {self.node.CLASS_TOKEN_POSITION}" + (
            ", class-specific" * self.class_specific
        )

    def published_state(self, state: dict) -> dict:
        """The context of a KgCoOp checkpoint, which is scored as CoOp's is; other states as they are."""
        if "bias_vectors" not in state or "ctx" not in state:
            return state
        logger.info("a checkpoint of KgCoOp: its context is read, its parts without use are not")
        return {name: value for name, value in state.items() if not name.startswith(("bias_vectors", "meta_net."))}

    def build_model(self) -> None:
        """The context and the tokens of the class names."""
        text, node = self.backbone.text, self.node
        if node.CSC and not self.class_specific:
            logger.warning(
                "TRAINER.%s.CSC is ignored: a context that starts from words (CTX_INIT %r) is shared by all classes, "
                "as in CoOp's program; for one per class, empty CTX_INIT",
                type(self).__name__.upper(),
                node.CTX_INIT,
            )
        learner = ContextLearner(text, node.CTX_INIT, node.N_CTX, self.num_classes, node.CSC)
        self.classes = text.class_tokens(self.classnames, n_ctx=learner.ctx.shape[-2])
        self.model = self.register_learner("prompt_learner", learner)

    def class_proxies(self) -> Tensor:
        """The classifier of the current context, `[C, E]`, normalised."""
        with self.precision.autocast():
            text = self.model(self.backbone.text, self.classes, self.node.CLASS_TOKEN_POSITION)
        return F.normalize(text.float(), dim=-1)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        views, labels = self.parse_batch_train(batch)
        rows = self.cached_view(batch)
        features = F.normalize(self.features.encode(views[0]) if rows is None else rows, dim=-1)
        terms, weights, tensors = self.loss_terms(features, labels)
        seen = {"images": views[0]} if views else {}
        return self.optimise(terms, weights, {**seen, "image features": features, **tensors})

    def loss_terms(
        self, features: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """The loss terms by name, unweighted, their weights, and the tensors that they are made of.

        Args:
            features: Normalised image features, `[B, E]`.
            labels: `[B]`.
        """
        text = self.class_proxies()
        logits = self.logit_scale * features @ text.T
        return {"ce": F.cross_entropy(logits, labels)}, {"ce": 1.0}, {"text features": text, "logits": logits}

    def before_test(self) -> None:
        """All images share the classifier."""
        self.classifier = self.class_proxies()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(features, self.classifier)
