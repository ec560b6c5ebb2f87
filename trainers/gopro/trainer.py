"""GOPro: prompts generated from each image's content and style, trained with self-supervision between views.

Source: Singha et al., "GOPro: Generate and Optimize Prompts in CLIP using Self-Supervised Learning", BMVC 2023
(arXiv 2308.11605). `VARIANT: released` is what the authors' program computes with its defects fixed (see
`trainers/gopro/model.py`), `VARIANT: paper` what the paper's figure shows. In the released variant no score passes
through the image projector, so its contrastive term cannot change a prediction; in the paper's variant it can.
"""

import logging
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.prompts import initial_context
from dassl_clip.clip.views import augmix_view, moco_view
from dassl_clip.engine import distributed
from dassl_clip.engine.conditioned import ConditionedTrainer
from dassl_clip.engine.features import Encoding
from dassl_clip.engine.method import ABOVE_ZERO, at_least, one_of
from dassl_clip.engine.unused import words_override
from dassl_clip.results.errors import UserError

from .model import (
    PROJECTOR_KEYS,
    VIEWS,
    GOProLearner,
    PromptGenerator,
    image_statistics,
    is_published,
    published_state,
)

VIEW_CROP = InterpolationMode.BILINEAR  # of the augmented views, as in the authors' program
logger = logging.getLogger(__name__)

VARIANTS = ("released", "paper")


@TRAINER_REGISTRY.register()
class GOPro(ConditionedTrainer):
    """Cross-entropy, contrastive loss between views, and consistency of the views' prompts."""

    listed_last = True
    repairs = "the style of each image"
    caches_first_view = True
    settings = {
        "N_CTX": 4,  # context tokens
        "CTX_INIT": "a photo of a",  # words that they start from
        "VARIANT": "released",
        "SHIFT_SCALE": "1.0",  # a number, or auto:R for first shifts of R times the token embeddings' RMS
        "CE_WEIGHT": 1.0,  # a weight of 0 leaves a loss term, and the views that only it needs, out
        "CONSISTENCY_WEIGHT": 1.0,
        "CONTRASTIVE_WEIGHT": 0.1,
        "TEMPERATURE": 0.1,  # of the contrastive term
        "BLUR_RADIUS": (0.1, 2.0),  # in pixels of the model's input
    }
    limits = {
        "N_CTX": at_least(1),
        "VARIANT": one_of(VARIANTS),
        **dict.fromkeys(("CE_WEIGHT", "CONSISTENCY_WEIGHT", "CONTRASTIVE_WEIGHT"), at_least(0)),
        "TEMPERATURE": ABOVE_ZERO,
    }
    overridden = {"N_CTX": ("CTX_INIT", words_override)}

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an unreadable shift scale and batches of one."""
        super().check_cfg(cfg)
        parse_shift_scale(cfg.TRAINER.GOPRO.SHIFT_SCALE)
        if cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            raise UserError("GOPro contrasts the images of a batch: DATALOADER.TRAIN_X.BATCH_SIZE must be at least 2")

    @property
    def prompt(self) -> str:
        """What the context started from."""
        start = repr(self.node.CTX_INIT) if self.node.CTX_INIT else f"{self.node.N_CTX} random tokens"
        return f"generated per image, context from {start}"

    @property
    def unread_parts(self) -> tuple[str, ...]:
        """In the released variant the image projector serves the contrastive loss alone."""
        return () if self.node.VARIANT == "paper" else ("image_projector.",)

    def published_state(self, state: dict) -> dict:
        """The learned parts of a checkpoint of the authors' program, or the state as it is."""
        if not is_published(state):
            return state
        learned = published_state(state)
        own = {key for key in learned if key.startswith("image_projector.")}
        if self.unread_parts and own != PROJECTOR_KEYS:
            logger.info("the image projector of the authors' checkpoint is of another form; no score needs it")
            learned = {key: value for key, value in learned.items() if key not in own}
        return learned

    def train_transform(self) -> list:
        """The views that the loss terms with a weight need, each made of the PIL image."""
        size, normalize = tuple(self.backbone.image_size), self.backbone.normalize()
        views = [super().train_transform()]
        if self.node.CONSISTENCY_WEIGHT or self.node.CONTRASTIVE_WEIGHT:
            views.append(moco_view(size, VIEW_CROP, normalize, tuple(self.node.BLUR_RADIUS)))
        if self.node.CONSISTENCY_WEIGHT:
            views.append(augmix_view(size, VIEW_CROP, normalize))
        return views

    def build_model(self) -> None:
        """The prompt generator and the projectors."""
        text, node, paper = self.backbone.text, self.node, self.node.VARIANT == "paper"
        context = initial_context(text, node.CTX_INIT, node.N_CTX)
        factor, relative = parse_shift_scale(node.SHIFT_SCALE)
        self.relative_shift = factor if relative else None
        generator = PromptGenerator(
            self.backbone.vision_widths,
            context,
            views=len(VIEWS) if paper else 1,
            shift_scale=1.0 if relative else factor,
        )
        self.classes = text.class_tokens(self.classnames, n_ctx=len(context))
        self.model = self.register_learner("gopro", GOProLearner(generator, self.backbone.embed_dim, paper))

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        views, labels = self.parse_batch_train(batch)
        size, generator, node = len(labels), self.model.generator, self.node
        known = self.cached_view(batch)
        rows = ([] if known is None else [known]) + ([self._encode(torch.cat(views))] if views else [])
        features, statistics = self._parts(torch.cat(rows))  # [V B, E] and [V B, ...]
        if self.relative_shift is not None and not self.cfg.MODEL.INIT_WEIGHTS and self.epoch == self.loop.step == 0:
            # The first shifts become R times the token embeddings' RMS; the factor stays in the checkpoint.
            table = self.backbone.text.embed(torch.arange(self.backbone.text.vocab_size, device=self.device))
            rms = float(table.float().square().mean().sqrt())
            generator.fit_shift_scale(distributed.gather_rows(statistics[:size]), self.relative_shift * rms)
        # The text of a view counts in the consistency term alone.
        prompted = statistics if node.CONSISTENCY_WEIGHT else statistics[:size]
        contexts = generator.contexts(prompted, len(prompted) // size)
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(contexts, self.classes)  # [V B, C, E]
        image, texts = features[:size], text.float().split(size)
        contrasted = list(features.split(size)[:2]) if node.CONTRASTIVE_WEIGHT else []
        if self.loop.processes > 1:  # images are contrasted with those of all processes
            contrasted = [distributed.gather_rows(view) for view in contrasted]
            if node.VARIANT == "paper":  # its projectors normalise over the whole batch
                image, labels = distributed.gather_rows(image), distributed.gather_rows(labels)
                texts = tuple(distributed.gather_rows(view) for view in texts)
        terms, logits = self.model.losses(image, texts, labels, self.logit_scale, node.TEMPERATURE, contrasted)
        weights = {
            "ce": node.CE_WEIGHT,
            "consistency": node.CONSISTENCY_WEIGHT,
            "contrastive": node.CONTRASTIVE_WEIGHT,
        }
        tensors = {"images": torch.cat(views)} if views else {}
        tensors |= {"image features": features, "image statistics": statistics}
        tensors |= {"contexts": contexts, "text features": text, "logits": logits}
        return self.optimise(terms, weights, tensors)

    @cached_property
    def encoding(self) -> Encoding:
        """Features `[E]`, and mean and deviation of every block."""
        width = self.backbone.embed_dim + 2 * sum(self.backbone.vision_widths)
        return Encoding("image features and block statistics", width, lambda images: self._encode(images))

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Normalised features and block statistics of images `[B, 3, H, W]`, side by side."""
        with self.precision.autocast():
            features, blocks = self.backbone.encode_image_with_blocks(images)
        return torch.cat([features, image_statistics(blocks)], dim=1)

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, E]` and block statistics of rows."""
        return rows[:, : self.backbone.embed_dim], rows[:, self.backbone.embed_dim :]

    def compared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, E]` of images and `[B, C, E]` of their prompts, projected in the paper's variant."""
        features, statistics = self._parts(rows)
        contexts = self.model.generator(statistics)
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(contexts, self.classes)
        return self.model.compared(features, text.float())

    def content(self, features: Tensor) -> Tensor:
        """What scores compare of image features `[B, E]`: projected in the paper's variant."""
        projected = self.model.text_projector is not None
        return self.model.image_projector(F.normalize(features, dim=-1)) if projected else features


def parse_shift_scale(value: str | float) -> tuple[float, bool]:
    """Read `SHIFT_SCALE`: `(factor, False)` for a number, `(R, True)` for `auto:R`.

    Raises:
        UserError: Neither form, or not positive.
    """
    text = str(value)
    relative = text.startswith("auto:")
    try:
        factor = float(text.removeprefix("auto:"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise UserError(
            f"TRAINER.GOPRO.SHIFT_SCALE is {value!r}; expected a positive number such as 1.0, or auto:R such as "
            f"auto:2.0"
        )
    return factor, relative
