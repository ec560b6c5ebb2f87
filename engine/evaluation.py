"""Testing: logits of a split, its metrics and its predictions.

Shapes: `B` images of a batch, `N` of a split, `C` classes.
"""

import logging
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from dassl.data import DatasetWrapper
from dassl_clip.clip.finite import check_rows
from dassl_clip.clip.rows import Cosines
from dassl_clip.results.errors import UserError
from dassl_clip.results.files import write_atomically
from dassl_clip.results.trust import calibration

from . import distributed, sharding
from .data import progress_bar
from .scenario_cases import check_draws

if TYPE_CHECKING:
    from .features import CachedImages
    from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)

TOP = 5
ROWS_AT_ONCE = 8192  # of scores
PREDICTIONS = "predictions.npz"
SMALLEST = torch.finfo(torch.float16).min  # of the saved scores


class Evaluation:
    """What was measured of the tested splits of a run.

    Attributes:
        results: Metrics of each split, or of each further way to score it.
        predictions: The last predictions of each split: `paths`, `labels` `[N]`, the best classes `top` and their
            softmax `shares` `[N, 5]`, best first; in the main process also `scores` `[N, C]`, the log-softmax in
            float16 (11 bits: to 0.05 % of a score), on the CPU.
        notes: How the extra tests of the last test were made.
        scenarios: What the record says of the batches, streams or orders of the last test.
    """

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.scenarios: dict[str, Any] = {}

    def measure(
        self,
        split: str,
        batches: Iterable[tuple[Tensor, Tensor, list[str]]],
        evaluator: Any,
        images: int,
        labelled: bool = True,
    ) -> dict[str, float]:
        """Metrics of a split, which are kept with its predictions.

        Args:
            split: Its name.
            batches: Logits `[B, C]`, float32, labels `[B]` and paths of its images.
            evaluator: Dassl's evaluator; it sees every batch, in the main process.
            images: How many there are, readable or not.
            labelled: False: the images have no labels; predictions alone are kept, and there are no metrics.

        Raises:
            NotFiniteError: Logits are not finite.
        """
        evaluator.reset()
        hits, top, shares, truth, paths, finite, trust = [], [], [], [], [], [], []
        scores: Tensor | None = None
        for logits, labels, names in batches:
            if not len(labels):
                continue
            paths += names
            if distributed.is_main() and labelled:
                evaluator.process(logits, labels)
            finite.append(logits.isfinite().all(dim=1))  # looked at after the last batch: a GPU need not wait for it
            log_shares = logits.log_softmax(dim=1)
            top.append(logits.topk(min(TOP, logits.shape[1]), dim=1).indices)
            shares.append(log_shares.gather(1, top[-1]).exp())
            truth.append(labels)
            if labelled:
                hits.append(top_hits(logits, labels))
                trust.append(trust_rows(log_shares, labels))
            if distributed.is_main():
                scores = torch.empty(images, logits.shape[1], dtype=torch.float16) if scores is None else scores
                scores[len(paths) - len(names) : len(paths)] = log_shares.clamp(min=SMALLEST)
        if finite and not bool((good := torch.cat(finite)).all()):
            check_rows(torch.where(good, 0.0, float("nan")), "scores", paths)
        metrics: dict[str, float] = {}
        if labelled:
            metrics = distributed.from_main(lambda: {key: float(value) for key, value in evaluator.evaluate().items()})
            self.results[split] = {**metrics, **count_hits(right := torch.cat(hits)), **calibrate(trust, right)}
        tensors = {"labels": torch.cat(truth), "top": torch.cat(top), "shares": torch.cat(shares)}
        if scores is not None:
            tensors["scores"] = scores[: len(paths)]
        self.predictions[split] = {"paths": paths, **tensors}
        return metrics

    def save_predictions(self, folder: Path, classnames: list[str], split: str = "test") -> None:
        """Write the predictions of a split, and `classnames` `[C]`, to `predictions.npz` of a folder. No pickles."""
        if not distributed.is_main():
            return
        arrays: dict[str, Any] = {
            key: np.array(value) if isinstance(value, list) else value.cpu().numpy()
            for key, value in self.predictions[split].items()
        }
        arrays["classnames"] = np.array(classnames)

        def write(file: Any) -> None:
            with zipfile.ZipFile(file, "w") as archive:
                for key, array in arrays.items():
                    entry = zipfile.ZipInfo(
                        f"{key}.npy"
                    )  # scores are noise: to compress a fifth takes 13 s of ImageNet
                    entry.compress_type = zipfile.ZIP_STORED if key == "scores" else zipfile.ZIP_DEFLATED
                    with archive.open(entry, "w", force_zip64=True) as part:
                        np.lib.format.write_array(part, array, allow_pickle=False)

        write_atomically(folder / PREDICTIONS, write)


def split_logits(
    trainer: "CLIPTrainer", loader: DataLoader[Any], split: str
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Logits `[B, C]`, float32, labels `[B]` and paths of a split, batch after batch, of its readable images.

    From cached rows where the method's logits depend on these alone, from all images together where it scores them so,
    else from the images. Several processes each compute some of the batches.
    """
    images: DatasetWrapper = loader.dataset
    items, device = images.data_source, trainer.device
    joint = trainer.score_jointly(items)
    cached = trainer.cached_images(items) if joint is None else joint

    def from_rows(rows: "CachedImages", batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in batches:
            labels = torch.tensor([items[number].label for number in index.tolist()], device=device)
            own = rows[index].to(device)
            yield own if joint is not None else trainer.feature_logits(own).float(), labels, index.to(device)

    def from_images(batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in progress_bar(batches, split):
            images, labels = trainer.parse_batch_test(batch)
            readable = [path not in trainer.features.skipped for path in batch["impath"]]
            logits = trainer.model_inference(images).float() if len(labels) else torch.zeros(0, trainer.num_classes)
            yield logits.to(device), labels, batch["index"][torch.tensor(readable)].to(device)

    if cached is None:
        own = from_images(sharding.shard_batches(loader))
    else:
        loader = cached.batches(trainer.features.batch_size)
        own = from_rows(cached, sharding.shard_batches(loader))
    for logits, labels, index in sharding.merge_shards(own, loader):
        yield logits, labels, [items[number].impath for number in index.tolist()]
    trainer.features.gather_skipped()


def selection_images(dataset: Any, setting: str) -> list[Any]:
    """The validation images of a data set, for a setting that is chosen on them.

    Raises:
        UserError: Some of them are tested.
    """
    tested = {item.impath for item in dataset.test}
    shared = [item.impath for item in dataset.val or () if item.impath in tested]
    if shared:
        raise UserError(
            f"{setting} chooses on validation images, but {len(shared)} of the {len(dataset.val)} that "
            f"{type(dataset).__name__} offers are test images too (such as {shared[0]}), and nothing is chosen on "
            "test images; give the data set validation images of its own, or set it to one value"
        )
    return dataset.val or []


def check_images(cfg: CfgNode, dataset: Any, measures: bool) -> None:
    """Refuse a run whose data set lacks the images or labels that its settings ask for.

    Raises:
        UserError: Images without labels are to be measured (`measures`), scenarios cannot be drawn, or there are no
            validation images, apart from the tested ones, to choose the model on.
    """
    if measures and getattr(dataset, "unlabelled", False):
        raise UserError(
            f"the images of {cfg.DATASET.NAME} have no labels: leave SCENARIOS.TASK and EVALUATE out, both measure"
        )
    check_draws(cfg, len(dataset.test))
    if cfg.TEST.FINAL_MODEL == "best_val" and not selection_images(dataset, "TEST.FINAL_MODEL best_val"):
        known = f"{cfg.DATASET.NAME} offers no validation images here, and nothing is chosen on test images"
        raise UserError(f"TEST.FINAL_MODEL is best_val, but {known}; use TEST.FINAL_MODEL last_step")


def top_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the best score, and whether one of the five best, is the label's: `[B, 2]` for scores `[B, C]`."""
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.eq(labels[:, None])
    return torch.stack([top[:, 0], top.any(1)], dim=1)


def count_hits(hits: Tensor) -> dict[str, float]:
    """Top-5 accuracy in percent and the counts, from `top_hits` of all images `[N, 2]`."""
    correct, near = hits.sum(0).tolist()
    return {"top5_accuracy": 100 * near / len(hits), "correct": correct, "total": len(hits)}


def trust_rows(log_shares: Tensor, labels: Tensor) -> Tensor:
    """Share of the best class, Brier score and negative log-likelihood in nats of each image, `[B, 3]`.

    Args:
        log_shares: The log-softmax of the logits, `[B, C]`, float32.
        labels: `[B]`.
    """
    shares, label = log_shares.exp(), labels[:, None]
    is_label = torch.arange(shares.shape[1], device=shares.device) == label
    brier = (shares - is_label.float()).square().sum(dim=1)
    return torch.stack([shares.amax(dim=1), brier, -log_shares.gather(1, label)[:, 0]], dim=1)


def calibrate(rows: list[Tensor], hits: Tensor) -> dict[str, float]:
    """`ece`, `brier` and `nll` from the `trust_rows` of all batches and the `top_hits` of all images `[N, 2]`."""
    return calibration(torch.cat(rows).cpu().numpy(), hits[:, 0].cpu().numpy())


def metrics_of(
    scores: Tensor | Cosines, labels: Tensor, classes: int, logit_scale: float | None = None
) -> dict[str, Any]:
    """Metrics of one way to score all images of a split, for a run's record.

    Args:
        scores: `[N, C]`; read in row blocks.
        labels: `[N]`.
        classes: `C`.
        logit_scale: What the scores are multiplied by to be logits; 1 for logits, None where they are none.

    Returns:
        Accuracy, error, top-5 accuracy in percent, counts, and accuracy (None for one without images) and number
        of images of each class; with a logit scale also `ece` in percent, `brier` and `nll` in nats.

    Raises:
        NotFiniteError: Scores are not finite.
    """
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(labels), ROWS_AT_ONCE)]
    parts, trust = [], []
    for rows in blocks:
        part = scores[rows]
        check_rows(part, "scores", [f"image {number}" for number in range(rows.start, rows.start + len(part))])
        parts.append(top_hits(part, labels[rows]))
        if logit_scale is not None:
            trust.append(trust_rows((logit_scale * part).float().log_softmax(dim=1), labels[rows]))
    hits = torch.cat(parts)
    shown = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[hits[:, 0]], minlength=classes).tolist()
    counts = count_hits(hits)
    accuracy = 100 * counts["correct"] / counts["total"]
    per_class = [100 * good / total if total else None for good, total in zip(right, shown)]
    facts = {"accuracy": accuracy, "error_rate": 100 - accuracy, **counts}
    facts |= calibrate(trust, hits) if trust else {}
    return facts | {"per_class_accuracy": per_class, "per_class_total": shown}
