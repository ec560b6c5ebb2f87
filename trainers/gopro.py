"""GOPro: prompts generated from each image's content and style, trained with self-supervision between views.

Source: Singha et al., "GOPro: Generate and Optimize Prompts in CLIP using Self-Supervised Learning", BMVC 2023
(arXiv 2308.11605). `VARIANT: released` is what the authors' program computes with its defects mended (see
`modeling/gopro.py`), `VARIANT: paper` what the paper's figure shows. In the released variant no score passes through
the image projector, so its contrastive term cannot change a prediction; in the paper's variant it can.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.modeling.coop import initial_context
from dassl_clip.modeling.gopro import VIEWS, GOProLearner, PromptGenerator, image_conditioned_scores
from dassl_clip.modeling.views import augmix_view, moco_view

from .base import CLIPTrainer, trainer_node

VARIANTS = ("released", "paper")


@TRAINER_REGISTRY.register()
class GOPro(CLIPTrainer):
    """Cross-entropy, contrastive loss between views, and consistency of the views' prompts."""

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """The prompt (`N_CTX`, `CTX_INIT`), the variant, the shift's scale, the loss weights and the contrastive tau.

        `SHIFT_SCALE`: a number, or `auto:R` for first shifts of R times the token embeddings' RMS. A weight of 0 leaves
        a loss term, and the views that only it needs, out. `BLUR_RADIUS` is in pixels of the model's input.
        """
        trainer_node(
            cfg,
            "GOPRO",
            N_CTX=4,
            CTX_INIT="a photo of a",
            VARIANT="released",
            SHIFT_SCALE="1.0",
            CE_WEIGHT=1.0,
            CONSISTENCY_WEIGHT=1.0,
            CONTRASTIVE_WEIGHT=0.1,
            TEMPERATURE=0.1,
            BLUR_RADIUS=(0.1, 2.0),
        )

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an unknown variant, an unreadable shift scale and batches of one."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.GOPRO
        if node.VARIANT not in VARIANTS:
            raise ValueError(f"TRAINER.GOPRO.VARIANT is {node.VARIANT!r}; expected one of {VARIANTS}")
        parse_shift_scale(node.SHIFT_SCALE)
        if cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            raise ValueError("GOPro contrasts the images of a batch: DATALOADER.TRAIN_X.BATCH_SIZE must be at least 2")

    @property
    def prompt(self) -> str:
        """What the context started from."""
        start = repr(self.node.CTX_INIT) if self.node.CTX_INIT else f"{self.node.N_CTX} random tokens"
        return f"generated per image, context from {start}"

    @property
    def unread_parts(self) -> tuple[str, ...]:
        """In the released variant the image projector serves the contrastive loss alone."""
        return () if self.node.VARIANT == "paper" else ("image_projector.",)

    def train_transform(self) -> list:
        """The views that the loss terms with a weight need, each made of the PIL image."""
        size, normalize = tuple(self.backbone.image_size), self.backbone.normalize()
        interpolation = InterpolationMode(self.backbone.interpolation)
        views = [super().train_transform()]
        if self.node.CONSISTENCY_WEIGHT or self.node.CONTRASTIVE_WEIGHT:
            views.append(moco_view(size, interpolation, normalize, tuple(self.node.BLUR_RADIUS)))
        if self.node.CONSISTENCY_WEIGHT:
            views.append(augmix_view(size, interpolation, normalize))
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
        with torch.no_grad(), self.precision.autocast():
            features, blocks = self.backbone.encode_image_with_blocks(torch.cat(views))
        if self.relative_shift is not None and not self.cfg.MODEL.INIT_WEIGHTS and self.epoch == self.batch_idx == 0:
            self._fit_shift_scale([block[:size] for block in blocks])
        # The text of a view counts in the consistency term alone.
        prompts = len(views) if node.CONSISTENCY_WEIGHT else 1
        contexts = torch.cat(
            [generator([block[v * size : (v + 1) * size] for block in blocks], view=v) for v in range(prompts)]
        )
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(contexts, self.classes)  # [V B, C, E]
        terms, logits = self.model.losses(
            features.split(size),
            text.float().split(size),
            labels,
            self.logit_scale,
            node.TEMPERATURE,
            contrastive=bool(node.CONTRASTIVE_WEIGHT),
        )
        weights = {
            "ce": node.CE_WEIGHT,
            "consistency": node.CONSISTENCY_WEIGHT,
            "contrastive": node.CONTRASTIVE_WEIGHT,
        }
        tensors = {"images": torch.cat(views), "image features": features, "contexts": contexts, "text features": text}
        return self.optimise(terms, weights, {**tensors, "logits": logits})

    def _fit_shift_scale(self, blocks: list[Tensor]) -> None:
        """Make the shifts of the first batch `R` times the token embeddings' RMS; the factor stays in the
        checkpoint."""
        table = self.backbone.text.embed(torch.arange(self.backbone.text.vocab_size, device=self.device))
        rms = float(table.float().square().mean().sqrt())
        self.model.generator.fit_shift_scale(blocks, self.relative_shift * rms)

    def model_inference(self, input: Tensor) -> Tensor:
        """Scores `[B, C]` of images `[B, 3, H, W]`: the original view alone."""
        return image_conditioned_scores(*self._encoded(input), self.logit_scale)

    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, E]` of images and `[B, C, E]` of their prompts, projected in the paper's variant."""
        with self.precision.autocast():
            features, blocks = self.backbone.encode_image_with_blocks(images)
        contexts = self.model.generator(blocks)
        with self.precision.autocast():
            text = self.backbone.text.encode_prompts(contexts, self.classes)
        return self.model.compared(features, text.float())

    def content(self, features: Tensor) -> Tensor:
        """What scores compare of image features `[B, E]`: projected in the paper's variant."""
        projected = self.model.text_projector is not None
        return self.model.image_projector(F.normalize(features, dim=-1)) if projected else features

    @torch.no_grad()
    def refine_inputs(self, items: list) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base; the proxies are the means, over the images, of the text features of their prompts."""
        features, scores, proxies = [], [], 0.0
        for batch in self._bar(self.plain_loader(items), "scores"):
            image, text = self._encoded(self.parse_batch_test(batch)[0])
            features.append(F.normalize(image, dim=-1))
            scores.append(image_conditioned_scores(image, text, torch.ones_like(self.logit_scale)))
            proxies = proxies + F.normalize(text, dim=-1).sum(0)
        return torch.cat(features), torch.cat(scores), F.normalize(proxies, dim=-1)


def parse_shift_scale(value: str | float) -> tuple[float, bool]:
    """Read `SHIFT_SCALE`: `(factor, False)` for a number, `(R, True)` for `auto:R`.

    Raises:
        ValueError: Neither form, or not positive.
    """
    text = str(value)
    relative = text.startswith("auto:")
    try:
        factor = float(text.removeprefix("auto:"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError(
            f"TRAINER.GOPRO.SHIFT_SCALE is {value!r}; expected a positive number such as 1.0, or auto:R such as "
            f"auto:2.0"
        )
    return factor, relative
