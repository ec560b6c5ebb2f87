"""The image features of a finished run: those that it cached, or encoded again where a folder of data is given.

A run names its cached features (`features.npz`), so the data need not be there any more. A method that compares the
tower's own features needs no trainer either; of any other, the trainer is built again from the run's folder.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, cache_dir
from dassl_clip.results.records import read_record

from .open_run import class_names, open_run, read_run, trainer_class
from .saved_features import saved_features
from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)

SPLITS = {"test": "test images", "val": "source validation images", "train": "source training images"}


@dataclass
class RunFeatures:
    """The readable images of a split, `N`, and their features as the tower gave them.

    Attributes:
        record: The run's record.
        classnames: The class names in label order.
        features: `[N, E]`.
        labels: `[N]`.
        domains: Number of the domain of each image.
        trainer: The run's trainer; None where the tower's own features are what the method compares.
    """

    record: dict[str, Any]
    classnames: list[str]
    features: Tensor
    labels: Tensor
    domains: list[int]
    trainer: Any = None


def run_features(folder: Path, split: str, data: str = "", with_trainer: bool = False) -> RunFeatures:
    """The features of a run's split.

    Args:
        folder: The run's folder.
        split: `test`, `val` or `train`.
        data: Folder above the data sets, to encode the images again; "" for cached features.
        with_trainer: Whether the trainer is needed in any case.

    Raises:
        UserError: The run has no such images, or its features were not cached, or are there no longer.
    """
    record, tree = read_run(folder)
    if data:
        return _encode(folder, split, data)
    saved = saved_features(folder).get(split)
    features = saved.read() if saved is not None else None
    if saved is None or features is None:
        why = "names no saved features" if saved is None else f"names features (entry {saved.entry[:12]} of the cache)"
        root = shlex.quote(str(tree.get("DATASET", {}).get("ROOT") or "DIR"))
        raise UserError(
            f"the run in {folder} {why} of its {SPLITS[split]}{'' if saved is None else ' that are there no longer'}; "
            f"with --data {root} (the folder above the data sets) this command encodes the images again, and caches "
            "their features"
        )
    readable = features.isfinite().all(dim=1)
    labels, domains = torch.from_numpy(saved.labels)[readable], saved.domains[readable.numpy()].tolist()
    trainer = None
    if with_trainer or getattr(trainer_class(record["method"]), "content", None) is not CLIPTrainer.content:
        trainer, _ = open_run(folder)
    return RunFeatures(record, class_names(folder, record), features[readable], labels, domains, trainer)


def _encode(folder: Path, split: str, data: str) -> RunFeatures:
    """The same from the data: encoded, cached, and named in the run's folder."""
    trainer, record = open_run(folder, root=data)
    if record.get("data") and record["data_fingerprint"] != trainer.data.fingerprint:
        logger.warning("%s is no longer what the run in %s was made with", record["dataset"], folder)
    dataset = trainer.dm.dataset
    images = {"test": dataset.test, "val": dataset.val, "train": dataset.train_x}[split]
    if not images:
        raise UserError(f"{dataset.__class__.__name__} offers no {SPLITS[split]} here; choose another --split")
    images = sorted(images, key=lambda image: image.impath)
    features, labels = trainer.features.raw(images)
    domains = [image.domain for image in images if image.impath not in trainer.features.skipped]
    trainer.features.save(folder, dataset, (split, *trainer.cached_splits))
    if cache_dir() is None:
        logger.warning("%s is '%s', so the features are not cached", CACHE_VARIABLE, CACHE_OFF)
    return RunFeatures(record, trainer.classnames, features, labels, domains, trainer)


@torch.no_grad()
def setting_sweep(
    folder: Path, name: str, values: Sequence[float], split: str, data: str = ""
) -> tuple[dict[str, Any], dict[float, float]]:
    """Accuracy of a run by a setting that its record fixes (`fixed_in_record` of its trainer's class).

    Args:
        folder: The run's folder.
        name: The setting's key in the record, and the attribute of the trainer's `model`.
        values: Those to read; the run's own is added; empty: the candidates of the run's configuration.
        split: `val` (of the source domains) or `test`.
        data: Folder above the data sets, to encode the images again; "" for cached features.

    Returns:
        The run's record, and value -> accuracy in percent.

    Raises:
        UserError: The run has no such setting, or no such images, or their features are not there.
    """
    record = read_record(folder) or read_run(folder)[0]
    if name not in record:
        raise UserError(f"{folder} is a run of {record['method']}, which has no {name}")
    images = run_features(folder, split, data, with_trainer=True)
    trainer = images.trainer
    key = next(key for key, fact in trainer.fixed_in_record.items() if fact == name)
    features, labels = images.features.to(trainer.device), images.labels.to(trainer.device)
    sweep: dict[float, float] = {}
    for value in sorted({*(values or trainer.node[f"{key}_CANDIDATES"]), record[name]}):
        setattr(trainer.model, name, float(value))
        logits = trainer.cosine_logits(trainer.content(features), trainer.class_proxies())
        sweep[float(value)] = 100 * logits.argmax(dim=1).eq(labels).double().mean().item()
    return record, sweep
