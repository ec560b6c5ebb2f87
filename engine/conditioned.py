"""Methods whose class features depend on the image: each image is scored by text features of its own prompts.

Shapes: `B` images, `C` classes, `E` joint embedding, `W` numbers of an encoding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.clip.losses import image_conditioned_scores
from dassl_clip.clip.memory import activation_budget, rows_without_gradients

from . import sharding
from .trainer import CLIPTrainer


class ConditionedTrainer(CLIPTrainer):
    """A method that makes a prompt for each image; a subclass says how by `compared`.

    Attributes:
        compared: What scores compare: features `[B, E]` of images and `[B, C, E]` of their prompts, from rows `[B, W]`.
    """

    reads_features = False  # no classifier serves all images
    compared: Callable[[Tensor], tuple[Tensor, Tensor]]

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of rows `[B, W]`, as many images at once as the text features leave memory for."""
        bytes_each = self.num_classes * self.backbone.embed_dim * torch.float32.itemsize
        size = rows_without_gradients(activation_budget(features.device), bytes_each)
        parts = [image_conditioned_scores(*self.compared(part), self.logit_scale) for part in features.split(size)]
        return torch.cat(parts)

    @torch.no_grad()
    def refine_inputs(self, items: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base; the proxies are the means, over the images, of the text features of their prompts."""

        def refined(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Features `[B, E]`, cosines `[B, C]` and the sum over the images of their text features `[1, C, E]`."""
            image, text = self.compared(rows)
            cosines = image_conditioned_scores(image, text, torch.ones_like(self.logit_scale))
            return F.normalize(image, dim=-1), cosines, F.normalize(text, dim=-1).sum(0, keepdim=True)

        cached = self.cached_images(items)
        if cached is None:
            loader = self.features.loader(items)
            batches = (self.parse_batch_test(batch)[0] for batch in sharding.shard_batches(loader))
            own = (self.encoding.encode(images) for images in batches)
        else:
            loader = cached.batches(self.features.batch_size)
            own = (cached[places].to(self.device) for places in sharding.shard_batches(loader))
        features, scores, proxies = [], [], torch.zeros(())
        for image, cosines, texts in sharding.merge_shards(map(refined, own), loader):
            features.append(image)
            scores.append(cosines)
            for text in texts:  # of each batch; in their order, so that the digits do not depend on who made them
                proxies = proxies.to(text.device) + text
        return torch.cat(features), torch.cat(scores), F.normalize(proxies, dim=-1)
