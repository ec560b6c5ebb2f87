"""Random views of the training images, encoded once and cached: what methods need that learn from features alone.

The view of an image follows from the run's seed, the number of the view and the image's place among the sorted paths.
So a run that is repeated, or another method with the same transform and seed, finds the views in the cache.

Shapes: `N` training images, `W` numbers of an encoding, `A` views.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError

from .data import can_be_fixed, derive_seed
from .features import CachedImages

if TYPE_CHECKING:
    from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)


class TrainingViews(Sequence[Tensor]):
    """`A` views of the training images: item `a` has their rows `[N, W]` under view `a`, on the device.

    Where the training transform is not random, all views are one, which is encoded once.

    Args:
        trainer: Its `encoding`, `train_transform`, seed and training images count.
        count: `A`.

    Attributes:
        labels: `[N]`, of the readable images, on the device.

    Raises:
        UserError: No training image can be read.
    """

    def __init__(self, trainer: CLIPTrainer, count: int):
        items, own = trainer.dm.dataset.train_x, trainer.backbone.preprocess()
        transform, self.length, self.device = trainer.train_transform(), count, trainer.device
        seeds: list[int | None] = [None]
        if not can_be_fixed(transform, trainer.cfg, own):
            seeds = [derive_seed(trainer.cfg.SEED, "view", number) for number in range(count)]
            logger.info("%d random views of %d training images are encoded once", count, len(items))
        plain = None if repr(transform) == repr(own) else transform
        self.views: list[CachedImages] = [
            trainer.features.cached(items, trainer.encoding, plain, seed) for seed in seeds
        ]
        self.readable = self.views[0].readable
        if not len(self.readable):
            raise UserError(f"none of the {len(items)} training images can be read, so there is nothing to learn from")
        labels = [items[number].label for number in self.readable.tolist()]
        self.labels = torch.tensor(labels, device=self.device)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Tensor:  # type: ignore[override]  # no slices
        if not 0 <= number < self.length:
            raise IndexError(number)
        return self.views[number % len(self.views)][self.readable].to(self.device)
