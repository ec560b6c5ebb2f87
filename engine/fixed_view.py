"""Training on a view that is the same in every epoch: its images are encoded once (`features.py`), and read no more.

The first training view of a trainer is fixed if nothing in its transform is random, as in the model's own
preprocessing. What a step needs of it is then taken from the feature cache. The order of images, the random views
beside it and all random numbers stay as they are.

Shapes: `B` images of a batch, `N` of a list, `E` joint embedding.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision import transforms

from .data import SeededImages
from .features import CachedImages

logger = logging.getLogger(__name__)

FIXED_STEPS = (transforms.Resize, transforms.CenterCrop, transforms.ToTensor, transforms.Normalize)


class FixedViewMixin:
    """Training methods of a `CLIPTrainer` whose steps take what they need of the first view from `cached_view`.

    Attributes:
        first_view: The cached rows of the training images; None while the first view is read.
    """

    first_view: CachedImages | None = None

    def fit(self) -> None:
        """The epoch loop, on cached rows where the first view is fixed."""
        with self._fixed_view():
            super().fit()

    def cached_view(self, batch: dict) -> Tensor | None:
        """The `encoding` of the first view of a batch's images, `[B, W]`, or None if the view is read."""
        if self.first_view is None:
            return None
        return self.first_view[batch["index"]].to(self.device, non_blocking=True)

    @contextmanager
    def _fixed_view(self) -> Iterator[None]:
        """While it lasts, the loader leaves out the first view if that is fixed."""
        loader, images = self.train_loader_x, self.train_loader_x.dataset
        before = images.transform, images.readable, images.as_bytes, loader.num_workers
        own_step = type(self).forward_backward.__module__.startswith("dassl_clip.")  # others may read the batch
        images.as_bytes = self.device.type == "cuda" and own_step
        views = list(images.transform) if isinstance(images.transform, (list, tuple)) else [images.transform]
        if self._can_keep(images, views[0]):
            own = repr(views[0]) == repr(self.backbone.preprocess())
            self.first_view = self.features.cached(images.data_source, self.encoding, None if own else views[0])
            images.readable = torch.zeros(len(images), dtype=torch.bool)
            images.readable[self.first_view.readable] = True
            images.transform = views[1:]
            if not images.transform:
                loader.num_workers = 0  # nothing is decoded
            logger.info("the first training view is fixed: its %d images are encoded once", len(images))
        try:
            yield
        finally:
            self.first_view = None
            images.transform, images.readable, images.as_bytes, loader.num_workers = before

    def _can_keep(self, images: SeededImages, view: Callable) -> bool:
        """Whether cached rows can stand for a view."""
        if self.start_epoch >= self.max_epoch or images.k_tfm > 1 or images.return_img0 or not self.is_fixed(view):
            return False
        fits = self.encoding.fits(len(images.data_source))
        if not fits:
            logger.info("the first training view is encoded in every epoch: its rows would take too much memory")
        return fits

    def is_fixed(self, transform: Callable) -> bool:
        """Whether a transform is the model's own preprocessing, or made of steps without randomness."""
        steps, own = (getattr(t, "transforms", ()) for t in (transform, self.backbone.preprocess()))
        if [*map(type, steps)] == [*map(type, own)] and repr(transform) == repr(self.backbone.preprocess()):
            return True
        return bool(steps) and all(type(step) in FIXED_STEPS for step in steps)
