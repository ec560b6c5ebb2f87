"""Testing a trainer: scores of a split, its metrics and its predictions."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dassl_clip.clip.finite import check_rows
from dassl_clip.clip.rows import Cosines
from dassl_clip.results.errors import UserError

from . import distributed
from . import sharding as dealing
from .checkpoint_files import write_atomically
from .data import progress_bar
from .features import CachedImages

logger = logging.getLogger(__name__)

TOP = 5
ROWS_AT_ONCE = 8192  # of scores
PREDICTIONS = "predictions.npz"


class TestingMixin:
    """The test methods of Dassl trainers that have a frozen `backbone`, a `precision`, and `results` to fill.

    A trainer whose logits depend on the features of an image alone defines `feature_logits(features)`: features
    `[B, E]` as the tower gives them (float32, not normalised), or the rows `[B, W]` of its `encoding`, to logits
    `[B, C]`. Its images are then encoded once and cached. Any other trainer defines `model_inference(images)`.
    """

    cached_splits: tuple[str, ...] = ()  # splits beside the tested one whose features are cached for figures

    def before_test(self) -> None:
        """Called once before the batches of a test: the place for what all images share, such as text features."""

    def model_inference(self, input: Tensor) -> Tensor:
        """Scores `[B, C]` of images `[B, 3, H, W]`."""
        return self.feature_logits(self.encoding.encode(input))

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; its metrics go to `self.results`, the accuracy (percent) is returned.

        Raises:
            UserError: The split is neither `test` nor `val`, or the data set has no such images.
        """
        split = split or self.cfg.TEST.SPLIT
        loader = {"test": self.test_loader, "val": self.val_loader}.get(split)
        if loader is None:
            raise UserError(
                f"cannot test on '{split}': {self.cfg.DATASET.NAME} offers test images"
                + (" and val images" if self.val_loader is not None else ", no val images")
            )
        begin = time.monotonic()
        self.set_model_mode("eval")
        self.evaluator.reset()
        self.before_test()
        logger.info("evaluate on the %s images", split)
        hits, top, shares, truth, paths, finite = [], [], [], [], [], []
        for scores, labels, names in self._scored(loader, split):
            if not len(labels):
                continue
            paths += names
            if distributed.is_main():
                self.evaluator.process(scores, labels)
            finite.append(scores.isfinite().all(dim=1))  # looked at after the last batch: a GPU need not wait for it
            hits.append(top_hits(scores, labels))
            best = scores.softmax(dim=1).topk(min(TOP, scores.shape[1]), dim=1)
            top.append(best.indices)
            shares.append(best.values)
            truth.append(labels)
        if hits and not bool((good := torch.cat(finite)).all()):
            check_rows(torch.where(good, 0.0, float("nan")), "scores", paths)
        metrics = distributed.from_main(lambda: {k: float(v) for k, v in self.evaluator.evaluate().items()})
        for key, value in metrics.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        self.results[split] = {**{key: float(value) for key, value in metrics.items()}, **count_hits(torch.cat(hits))}
        self.predictions[split] = {
            "paths": paths,
            "labels": torch.cat(truth),
            "top": torch.cat(top),
            "shares": torch.cat(shares),
        }
        self.seconds["test"] += time.monotonic() - begin
        return float(next(iter(metrics.values())))

    def save_predictions(self, split: str = "test") -> None:
        """Write the last test's predictions of a split to `predictions.npz` in the run's folder, and `features.npz`.

        Arrays: `paths` and `labels` `[N]`, the best classes `top` and their softmax `shares` `[N, 5]`, best first, and
        `classnames` `[C]`. No pickles.
        """
        if split not in self.predictions:
            return
        arrays = {
            key: np.array(value) if isinstance(value, list) else value.cpu().numpy()
            for key, value in self.predictions[split].items()
        }
        arrays["classnames"] = np.array(self.classnames)
        if distributed.is_main():
            write_atomically(Path(self.output_dir) / PREDICTIONS, lambda file: np.savez_compressed(file, **arrays))
        self.save_features(Path(self.output_dir), split)

    def save_features(self, folder: Path, split: str = "test") -> None:
        """Name the cached features of this run's images in `features.npz`, for figures.

        Features of the named split and of `cached_splits` are computed if the test did not need them.
        """
        data = self.dm.dataset
        splits = {"test": data.test, "val": data.val, "train": data.train_x}
        self.features.save(folder, splits, dict.fromkeys((split, *self.cached_splits)))

    def _scored(self, loader: DataLoader, split: str) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Scores `[B, C]`, float32, labels `[B]` and paths of a split, batch after batch, of its readable images."""
        items = loader.dataset.data_source
        cached = self.cached_images(items)
        if cached is None:
            own = self._scored_images(dealing.own_batches(loader), split)
        else:
            loader = cached.batches(self.features.batch_size)
            own = self._scored_rows(dealing.own_batches(loader), items, cached)
        for scores, labels, places in dealing.dealt(own, loader):
            yield scores, labels, [items[place].impath for place in places.tolist()]
        self.features.gather_skipped()

    def cached_images(self, items: Sequence) -> CachedImages | None:
        """The cached rows of images under `encoding`, or None if `model_inference` shall see the images."""
        reads_images = type(self).model_inference is not TestingMixin.model_inference
        if reads_images or not hasattr(self, "feature_logits") or not self.encoding.fits(len(items)):
            return None
        return self.features.cached(items, self.encoding)

    def _scored_rows(
        self, batches: DataLoader, items: Sequence, cached: CachedImages
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scores `[B, C]`, labels `[B]` and places `[B]` of batches of places; rows are read batch by batch."""
        for places in batches:
            labels = torch.tensor([items[place].label for place in places.tolist()], device=self.device)
            yield self.feature_logits(cached[places].to(self.device)).float(), labels, places.to(self.device)

    def _scored_images(self, loader: DataLoader, split: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scores `[B, C]`, labels `[B]` and places in the data source `[B]` of the readable images of each batch."""
        for batch in progress_bar(loader, split):
            images, labels = self.parse_batch_test(batch)
            readable = [name not in self.features.skipped for name in batch["impath"]]
            places = batch["index"][torch.tensor(readable)].to(self.device)
            scores = self.model_inference(images).float() if len(labels) else torch.zeros(0, self.num_classes)
            yield scores.to(self.device), labels, places

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` and labels `[B]` on the device, without those that could not be decoded."""
        images, labels = self.features.to_device(batch["img"]), batch["label"].to(self.device, non_blocking=True)
        readable = self.features.note_unreadable(batch)
        return (images, labels) if all(readable) else (images[readable], labels[readable])


def top_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the best score, and whether one of the five best, is the label's: `[B, 2]` for scores `[B, C]`."""
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.eq(labels[:, None])
    return torch.stack([top[:, 0], top.any(1)], dim=1)


def count_hits(hits: Tensor) -> dict[str, float]:
    """Top-5 accuracy in percent and the counts, from `top_hits` of all images `[N, 2]`."""
    correct, near = hits.sum(0).tolist()
    return {"top5_accuracy": 100 * near / len(hits), "correct": correct, "total": len(hits)}


def reading(scores: Tensor | Cosines, labels: Tensor, classes: int) -> dict[str, object]:
    """Metrics of one way to score all images of a split, for a run's record.

    Args:
        scores: `[N, C]`; read in row blocks.
        labels: `[N]`.
        classes: `C`.

    Returns:
        Accuracy, error, top-5 accuracy in percent, counts, and the accuracy of each class (None for one without
        images).

    Raises:
        NotFiniteError: Scores are not finite.
    """
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(labels), ROWS_AT_ONCE)]
    hits = []
    for rows in blocks:
        part = scores[rows]
        check_rows(part, "scores", [f"image {number}" for number in range(rows.start, rows.start + len(part))])
        hits.append(top_hits(part, labels[rows]))
    hits = torch.cat(hits)
    shown = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[hits[:, 0]], minlength=classes).tolist()
    counts = count_hits(hits)
    accuracy = 100 * counts["correct"] / counts["total"]
    per_class = [100 * good / total if total else None for good, total in zip(right, shown)]
    return {"accuracy": accuracy, "error_rate": 100 - accuracy, **counts, "per_class_accuracy": per_class}
