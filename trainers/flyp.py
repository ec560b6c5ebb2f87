"""FLYP: both towers fine-tuned by the loss that CLIP was trained with, on captions made of class names.

Source: Goyal et al., "Finetune like you pretrain: Improved finetuning of zero-shot vision models", CVPR 2023, arXiv
2212.00638, and the authors' program. Each image of a batch gets the caption of its class in one of `TEMPLATES`, drawn
at random. With features `f_i` of the images and `t_i` of the captions, all of length 1, and the scale `s`, which is
learned as both towers are,

    loss = (CE(s f t^T, diagonal) + CE(s t f^T, diagonal)) / 2.

At the test a class has the mean over the templates of the trained text tower's features.

`LOSS` says what two images of one class are to each other:
- `batch`: negatives, though their captions may be equal. This is the method of the paper.
- `batch_shared`: positives; targets are equal shares of all captions of the own class.
- `batch_masked`: nothing; these pairs are left out.
- `classes`: there are no pairs: cross-entropy over the captions of all classes, in one template drawn for each class
  and step, the program's ablation. With few classes nearly all pairs of a batch are duplicates, and this is the variant
  to take.

Differences from the authors' program: captions are drawn for each image and step, in place of a list of all images in
all templates, shuffled; equal captions of a batch are encoded once.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.fine_tuned import LearnedCLIP
from dassl_clip.clip.templates import fill_template
from dassl_clip.engine import distributed
from dassl_clip.engine.fine_tuning import FineTuningTrainer
from dassl_clip.engine.method import one_of
from dassl_clip.results.labels import display_name

logger = logging.getLogger(__name__)

LOSSES = ("batch", "batch_shared", "batch_masked", "classes")


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, labels: Tensor, same_class: str) -> Tensor:
    """The loss of pairs of images and captions, a scalar.

    Args:
        images: `[B, E]`, of length 1.
        texts: Of their captions, `[B, E]`, of length 1.
        scale: `s`.
        labels: `[B]`.
        same_class: `batch`, `batch_shared` or `batch_masked`.
    """
    logits = scale * images @ texts.T
    same, own = labels[:, None] == labels, torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    targets = own.float()
    if same_class == "batch_shared":
        targets = same.float() / same.sum(dim=1, keepdim=True)
    elif same_class == "batch_masked":
        logits = logits.masked_fill(same & ~own, float("-inf"))
        diagonal = torch.arange(len(labels), device=labels.device)
        return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@TRAINER_REGISTRY.register()
class FLYP(FineTuningTrainer):
    """The contrastive loss over a batch, or cross-entropy over all classes, with both towers learned."""

    settings = {**FineTuningTrainer.settings, "LOSS": "batch", "SCHEDULE": "cosine"}
    limits = {**FineTuningTrainer.limits, "LOSS": one_of(LOSSES)}

    def learner(self) -> nn.Module:
        """Both towers and the scale."""
        names = list(map(display_name, self.classnames))
        each = [[fill_template(template, name) for template in self.templates] for name in names]
        self.tokens = torch.stack([self.backbone.text.tokenize(texts) for texts in each])  # [C, K, T]
        batch = self.node.PER_DOMAIN * max(1, self.num_source_domains) or self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        if self.node.LOSS == "batch" and self.num_classes < batch:
            logger.warning(
                "with %d classes, batches of %d images have several of a class, which are each other's negatives: "
                "TRAINER.FLYP.LOSS classes is meant for few classes",
                self.num_classes,
                batch,
            )
        return LearnedCLIP(self.backbone, self.image_tower(), self.pixel_change)

    def draw_templates(self, count: int) -> Tensor:
        """The template of each of so many captions, `[count]`."""
        return torch.randint(self.tokens.shape[1], (count,)).to(self.tokens.device)

    def captions(self, labels: Tensor) -> Tensor:
        """Features `[N, E]`, of length 1, of a caption for each label `[N]`, in templates drawn at random.

        Equal captions are encoded once, with the gradient of all of them.
        """
        pairs = labels * self.tokens.shape[1] + self.draw_templates(len(labels))
        distinct, place = pairs.unique(return_inverse=True)
        with self.precision.autocast():
            features: Tensor = self.model.encode_text(self.tokens.flatten(0, 1)[distinct])
        return F.normalize(features.float(), dim=-1)[place]

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """The loss of images `[B, 3, H, W]` with labels `[B]`; several processes contrast all rows of the batch."""
        features = F.normalize(self.encode(images), dim=-1)
        if self.node.LOSS == "classes":
            texts = self.captions(torch.arange(self.num_classes, device=labels.device))
            terms = {"ce": F.cross_entropy(self.model.scale * features @ texts.T, labels)}
        else:
            texts = self.captions(labels)
            rows = [distributed.gather_rows(each) for each in (features, texts, labels)]
            terms = {"contrastive": contrastive_loss(rows[0], rows[1], self.model.scale, rows[2], self.node.LOSS)}
        return terms, dict.fromkeys(terms, 1.0), {"image features": features, "text features": texts}

    def before_test(self) -> None:
        """All images share the classifier of the trained text tower, and its scale."""
        super().before_test()
        self.classifier = self.class_proxies()
        self.logit_scale = self.model.scale.detach()

    @torch.no_grad()
    def class_proxies(self) -> Tensor:
        """The means over the templates of the trained text features, `[C, E]`, of length 1."""
        with self.precision.autocast():
            features = self.model.text.encode(self.tokens.flatten(0, 1)).float()
        each = F.normalize(features, dim=-1).unflatten(0, self.tokens.shape[:2])
        return F.normalize(each.mean(dim=1), dim=-1)

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` of the learned tower."""
        return self.cosine_logits(features, self.classifier)
