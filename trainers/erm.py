"""ERM: cross-entropy on the images of all source domains, with the whole image tower learned.

Source: Gulrajani, Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, and its program, DomainBed: `b`
images of each source domain, drawn with replacement, make a batch. With CLIP at least four programs carry the name;
they differ in the head, the input and the optimiser, and each has a file in `configs/trainers/ERM/`.

A head that starts at the texts has the weights `s t_c`, with CLIP's logit scale `s` and the text features `t_c` of the
classes; on features of length 1 it scores as zero-shot CLIP does at first. A fresh head is a new linear layer. A head
that is learned has a bias, which starts at 0.

DomainBed scores source validation images on augmented views (`VAL_AUGMENT`); here they are not augmented by default.
Batch normalisation keeps CLIP's statistics.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.fine_tuned import FineTuned, fresh_head
from dassl_clip.engine.fine_tuning import FineTuningTrainer
from dassl_clip.engine.method import one_of
from dassl_clip.results.errors import UserError

HEADS = ("text", "fresh")


@TRAINER_REGISTRY.register()
class ERM(FineTuningTrainer):
    """Cross-entropy on the scores of a head on the learned tower."""

    settings = {
        **FineTuningTrainer.settings,
        "HEAD": "text",  # where it starts: text or fresh
        "HEAD_LEARNED": True,
        "NORMALIZE": True,  # the head reads features of length 1
        "DROPOUT": 0.0,  # of the features before the head
        "LABEL_SMOOTHING": 0.0,
    }

    limits = {
        **FineTuningTrainer.limits,
        "HEAD": one_of(HEADS),
        **dict.fromkeys(("DROPOUT", "LABEL_SMOOTHING"), (lambda value: 0 <= value < 1, "a share, below 1")),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse a fresh head that is not learned."""
        super().check_cfg(cfg)
        name = type(self).__name__.upper()
        node = cfg.TRAINER[name]
        if node.HEAD == "fresh" and not node.HEAD_LEARNED:
            raise UserError(
                f"TRAINER.{name}.HEAD is fresh and HEAD_LEARNED False: the scores would be random for ever; take text"
            )

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        """Whether the head is learned."""
        return bool(self.node.HEAD_LEARNED)

    def learner(self) -> nn.Module:
        """The tower and its head."""
        node = self.node
        weight = self.logit_scale * self.text if node.HEAD == "text" else fresh_head(*self.text.shape)
        head = weight, node.HEAD_LEARNED, node.NORMALIZE, node.DROPOUT
        return FineTuned(self.image_tower(), *head, pixels=self.pixel_change)

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """Cross-entropy of images `[B, 3, H, W]` with labels `[B]`."""
        features = self.encode(images)
        logits = self.model.head(features)
        terms = {"ce": F.cross_entropy(logits, labels, label_smoothing=self.node.LABEL_SMOOTHING)}
        return terms, {"ce": 1.0}, {"image features": features, "logits": logits}
