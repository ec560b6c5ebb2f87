"""Testing a trainer, and the frozen features that tests and methods without an epoch loop work on."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import bank
from .checkpoint import write_atomically
from .images import RAISE

logger = logging.getLogger(__name__)

TOP = 5
PREDICTIONS = "predictions.npz"


class TestingMixin:
    """The test methods of Dassl trainers that have a frozen `backbone`, a `precision`, and `results` to fill.

    A trainer whose scores depend on the features of an image alone defines `feature_scores(features)`: features
    `[B, E]` as the tower gives them (float32, not normalised) to scores `[B, C]`. Its images are then encoded once and
    kept (`bank.py`). Any other trainer defines `model_inference(images)`.
    """

    def before_test(self) -> None:
        """Called once before the batches of a test: the place for what all images share, such as text features."""

    def model_inference(self, input: Tensor) -> Tensor:
        """Scores `[B, C]` of images `[B, 3, H, W]`."""
        return self.feature_scores(self.encode(input))

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
        logger.info("evaluate on the %s images", split)
        hits, top, shares, truth, paths = [], [], [], [], []
        for scores, labels, names in self._scored(loader, split):
            if not len(labels):
                continue
            paths += names
            self.evaluator.process(scores, labels)
            hits.append(top_hits(scores, labels))
            best = scores.softmax(dim=1).topk(min(TOP, scores.shape[1]), dim=1)
            top.append(best.indices)
            shares.append(best.values)
            truth.append(labels)
        metrics = self.evaluator.evaluate()
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
        """Write the last test's predictions of a split to `predictions.npz` in the run's folder.

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
        write_atomically(Path(self.output_dir) / PREDICTIONS, lambda file: np.savez_compressed(file, **arrays))

    def _scored(self, loader: DataLoader, split: str) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Scores `[B, C]`, float32, labels `[B]` and paths of a split, batch after batch, of its readable images."""
        if hasattr(self, "feature_scores"):
            features, labels = self.raw_features(loader.dataset.data_source)
            names = [item.impath for item in loader.dataset.data_source if item.impath not in self.skipped]
            for rows in torch.arange(len(labels)).split(loader.batch_size):
                first, last = int(rows[0]), int(rows[-1]) + 1
                batch = features[first:last].to(self.device)
                yield self.feature_scores(batch).float(), labels[rows].to(self.device), names[first:last]
            return
        for batch in self._bar(loader, split):
            images, labels = self.parse_batch_test(batch)
            names = [name for name in batch["impath"] if name not in self.skipped]
            if len(labels):
                yield self.model_inference(images).float(), labels, names

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` and labels `[B]` on the device, without those that could not be decoded."""
        images, labels = super().parse_batch_test(batch)
        readable = self.note_unreadable(batch)
        return (images, labels) if all(readable) else (images[readable], labels[readable])

    def note_unreadable(self, batch: dict) -> list[bool]:
        """Remember the paths of a batch that could not be decoded; returns which of its items can be used."""
        named = batch.get("unreadable", [""] * len(batch["label"]))
        for path in (line for text in named for line in text.splitlines()):
            if path not in self.skipped:
                logger.warning("skipped, cannot be decoded: %s", path)
                self.skipped[path] = None
        return [not text for text in named]

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`, as the tower gives them: float32, not normalised."""
        with torch.no_grad(), self.precision.autocast():
            return self.backbone.encode_image(images, normalize=False)

    @property
    def tower_facts(self) -> dict:
        """What names the towers in the bank."""
        return bank.tower_facts(self.backbone.describe(), self.precision.name, self.device)

    def raw_features(self, items: Sequence) -> tuple[Tensor, Tensor]:
        """Features `[N, E]` of a list of Datum under the test preprocessing, and their labels `[N]`, on the CPU.

        Encoded once and kept on disk, by path, so that all seeds that test the same images share them; not normalised.
        Images that cannot be decoded are left out where `DATALOADER.ON_BAD_IMAGE` is `skip`, and end the run otherwise.
        """
        order = sorted(range(len(items)), key=lambda place: items[place].impath)
        kept = [items[place] for place in order]
        facts = {"kind": "image features"} | bank.image_facts([item.impath for item in kept]) | self.tower_facts
        facts["bad images"] = self.cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE)
        features = bank.cached(facts, lambda: self._extract(kept))
        if order != list(range(len(items))):
            features = features[torch.tensor(order).argsort()]
        labels = torch.tensor([item.label for item in items])
        readable = features.isfinite().all(dim=1)
        if readable.all():
            return features, labels
        bad = [items[place].impath for place in (~readable).nonzero().flatten().tolist()]
        self.note_unreadable({"unreadable": bad, "label": bad})
        return features[readable], labels[readable]

    def features(self, items: Sequence) -> tuple[Tensor, Tensor]:
        """The same as `raw_features`, normalised and on the device."""
        features, labels = self.raw_features(items)
        return F.normalize(features.to(self.device), dim=-1), labels.to(self.device)

    @torch.no_grad()
    def refine_inputs(self, items: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """What a method that refines this one on unlabeled images needs.

        Returns:
            Normalised features of the images `[N, E]`, their scores without the logit scale `[N, C]`, and normalised
            class proxies to start from `[C, E]`.
        """
        features, _ = self.raw_features(items)
        batches = [batch.to(self.device) for batch in features.split(self.test_loader.batch_size)]
        scores = torch.cat([self.feature_scores(batch).float() for batch in batches]) / self.logit_scale
        content = torch.cat([self.content(batch) for batch in batches])
        return F.normalize(content, dim=-1), scores, F.normalize(self.class_proxies().float(), dim=-1)

    def content(self, features: Tensor) -> Tensor:
        """What is compared of features `[..., E]` of either tower: the features, unless a trainer changes them."""
        return features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features `[K, E]` of texts, encoded once and kept on disk; float32, not normalised, on the device."""

        def encode() -> Tensor:
            with self.precision.autocast():
                return self.backbone.text.encode(list(texts)).float()

        facts = {"kind": "text features"} | bank.text_facts(texts) | self.tower_facts
        return bank.cached(facts, encode).to(self.device)

    def plain_loader(self, items: Sequence) -> DataLoader:
        """A loader of a list of Datum in its order, under the test preprocessing."""
        like = self.test_loader
        images = type(like.dataset)(self.cfg, items, transform=self.backbone.preprocess(), is_train=False)
        return DataLoader(images, batch_size=like.batch_size, num_workers=like.num_workers)

    def _extract(self, items: Sequence) -> Tensor:
        """Features of all images `[N, E]`; of those that could not be decoded, NaN."""
        features = []
        for batch in self._bar(self.plain_loader(items), "features"):
            images, readable = batch["img"].to(self.device), torch.tensor(self.note_unreadable(batch))
            found = self.encode(images)
            if not found.isfinite().all():
                raise FloatingPointError(f"image features are not finite, in the batch of {', '.join(batch['impath'])}")
            features.append(found.masked_fill(~readable[:, None].to(found.device), float("nan")))
        return torch.cat(features)

    def cosine_scores(self, features: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines `[B, C]` of features `[B, E]` with class features `[C, E]`; both are normalised here."""
        return self.logit_scale * F.normalize(features.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T

    def _bar(self, loader, text: str):
        return tqdm(loader, desc=text, leave=False, disable=not sys.stderr.isatty())


def top_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the best score, and whether one of the five best, is the label's: `[B, 2]` for scores `[B, C]`."""
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.eq(labels[:, None])
    return torch.stack([top[:, 0], top.any(1)], dim=1)


def count_hits(hits: Tensor) -> dict[str, float]:
    """Top-5 accuracy in percent and the counts, from `top_hits` of all images `[N, 2]`."""
    correct, near = hits.sum(0).tolist()
    return {"top5_accuracy": 100 * near / len(hits), "correct": correct, "total": len(hits)}


def reading(scores: Tensor, labels: Tensor, classes: int) -> dict[str, object]:
    """Metrics of one way to score all images of a split, for a run's record.

    Args:
        scores: `[N, C]`.
        labels: `[N]`.
        classes: `C`.

    Returns:
        Accuracy, error, top-5 accuracy in percent, counts, and the accuracy of each class (None for one without
        images).
    """
    hits = top_hits(scores, labels)
    shown = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[hits[:, 0]], minlength=classes).tolist()
    counts = count_hits(hits)
    accuracy = 100 * counts["correct"] / counts["total"]
    per_class = [100 * good / total if total else None for good, total in zip(right, shown)]
    return {"accuracy": accuracy, "error_rate": 100 - accuracy, **counts, "per_class_accuracy": per_class}
