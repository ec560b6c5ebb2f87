"""Testing a trainer, and the frozen features that tests and methods without an epoch loop work on."""

import logging
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

logger = logging.getLogger(__name__)


class TestingMixin:
    """The test methods of Dassl trainers that have a frozen `backbone`, a `precision`, and `results` to fill."""

    def before_test(self) -> None:
        """Called once before the batches of a test: the place for what all images share, such as text features."""

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; its metrics go to `self.results`, the accuracy (percent) is returned."""
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        split = "val" if loader is self.val_loader else "test"
        begin = time.monotonic()
        self.set_model_mode("eval")
        self.evaluator.reset()
        self.before_test()
        hits = []
        logger.info("evaluate on the %s images", split)
        for batch in self._bar(loader, split):
            images, labels = self.parse_batch_test(batch)
            logits = self.model_inference(images).float()
            self.evaluator.process(logits, labels)
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
            hits.append(torch.stack([top[:, 0], top.any(1)], dim=1))
        metrics = self.evaluator.evaluate()
        for key, value in metrics.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        hits = torch.cat(hits).sum(0).tolist()
        total = len(loader.dataset)
        self.results[split] = {
            **{key: float(value) for key, value in metrics.items()},
            "top5_accuracy": 100 * hits[1] / total,
            "correct": hits[0],
            "total": total,
        }
        self.seconds["test"] += time.monotonic() - begin
        return float(next(iter(metrics.values())))

    def features(self, items: list) -> tuple[Tensor, Tensor]:
        """Image features `[N, E]` and labels `[N]` of a list of Datum, in its order, under the test preprocessing."""
        like = self.test_loader
        images = type(like.dataset)(self.cfg, items, transform=self.backbone.preprocess(), is_train=False)
        loader = DataLoader(images, batch_size=like.batch_size, num_workers=like.num_workers)
        features, labels = [], []
        with torch.no_grad(), self.precision.autocast():
            for batch in self._bar(loader, "features"):
                images, label = self.parse_batch_test(batch)
                features.append(self.backbone.encode_image(images))
                labels.append(label)
        return torch.cat(features), torch.cat(labels)

    def cosine_scores(self, images: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines `[B, C]` of images `[B, 3, H, W]` with normalised class features `[C, E]`."""
        with self.precision.autocast():
            features = self.backbone.encode_image(images)
        return self.logit_scale * features @ F.normalize(text.float(), dim=-1).T

    def _bar(self, loader, text: str):
        return tqdm(loader, desc=text, leave=False, disable=not sys.stderr.isatty())
